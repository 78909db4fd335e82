"""The workload that training hands over: its GEMMs, its graph, what was kept, and what it is without top-k."""

import pytest
import torch
from torch import nn

import hwsim
from hwsim import PrecisionPlan, SparseBackprop
from hwsim.data.dataset import Dataset, Split
from hwsim.training.loop import train
from hwsim.training.recipe import Recipe
from hwsim.training.trace import join_workloads, same_graph, split_workload
from hwsim.workload import Gemm, OpKind, Phase
from hwsim.workload_file import load_workload, save_workload

FP8 = PrecisionPlan.uniform("float8_e4m3fn", "float8_e5m2", "bfloat16", overflow="saturate")


def traced(model, plan="float32", sparse=None, inputs=(784,), classes=10, **recipe):
    """Train a few steps on noise and return the workload."""
    torch.manual_seed(0)
    split = Split(torch.randn(30, *inputs).numpy(), torch.randint(0, classes, (30,)).numpy())
    data = Dataset("noise", split, split.head(5), split.head(5), tuple(map(str, range(classes))), "0")
    chosen = Recipe(**{"batch": 10, "epochs": 1, "recorded_steps": 3, **recipe})
    return train(model, plan, data, sparse, recipe=chosen).workload


def macs(workload, backward_only=False, step=0):
    """Count multiply-accumulates, with the axis that a selection shrinks shrunk to what was kept."""
    total = 0
    for op in workload.ops:
        if op.kind is not OpKind.GEMM or (backward_only and op.gemm is Gemm.OUTPUT):
            continue
        m, n, k = op.m, op.n, op.k
        if op.selection:
            selection = workload.selections[op.selection]
            kept = float(selection.row_counts(step).mean())
            m, k = (kept, k) if op.selected_axis == "m" else (m, kept)
        total += m * n * k * op.groups
    return total


def test_backward_macs_are_those_of_the_paper():
    """Sun et al. 2017, counted by hand: 784-500-500-10 has 902,000 backward MACs an example, and 45,680 with k = 20."""
    model = hwsim.load_model("mlp_mnist")
    assert macs(traced(model), backward_only=True) == 10 * 902_000
    thin = traced(model, sparse=SparseBackprop(k=20, rank_over="batch"))
    assert macs(thin, backward_only=True) == 10 * 45_680
    assert macs(thin.dense(), backward_only=True) == 10 * 902_000


def test_graph_is_topological_and_whole():
    for plan in ("float32", FP8):
        work = traced(hwsim.load_model("mlp_mnist", hidden=20), plan, SparseBackprop(k=4))
        made = {t.id for t in work.tensors.values() if t.persistent or t.role in ("input", "weight", "bias")}
        for op in work.ops:
            assert set(op.reads) <= made, f"{op.id} reads what nobody made yet"
            made |= set(op.writes)
        updated = {op.reads[0] for op in work.ops if op.kind is OpKind.UPDATE}
        assert updated == {f"fc{i}.{name}" for i in (1, 2, 3) for name in ("weight", "bias")}
        assert [op.phase for op in work.ops] == sorted((op.phase for op in work.ops), key=list(Phase).index)


def test_first_layer_has_no_grad_input_and_the_three_gemms_have_their_axes():
    work = traced(hwsim.load_model("mlp_mnist", hidden=20))
    axes = {op.id: (op.m, op.n, op.k) for op in work.ops if op.kind is OpKind.GEMM}
    assert "fc1.grad_input" not in axes
    assert axes["fc1.output"] == (10, 20, 784) and axes["fc1.grad_weight"] == (20, 784, 10)
    assert axes["fc2.grad_input"] == (10, 20, 20) and axes["fc3.grad_input"] == (10, 20, 10)


def test_operands_are_cast_once_and_read_in_their_formats():
    work = traced(hwsim.load_model("mlp_mnist", hidden=20), FP8)
    for op in work.ops:
        if op.kind is OpKind.GEMM:
            formats = [str(work.tensors[t].format) for t in op.reads[:2]]
            wanted = ["float8_e4m3fn"] * 2 if op.gemm is Gemm.OUTPUT else ["float8_e5m2", "float8_e4m3fn"]
            assert formats == wanted, op.id
            assert str(op.mac) == "bfloat16"
            assert str(work.tensors[op.writes[0]].format) == ("float32" if op.gemm is Gemm.GRAD_WEIGHT else "bfloat16")
    casts = [op.writes[0] for op in work.ops if op.kind is OpKind.CAST]
    assert len(casts) == len(set(casts)) == 3 + 3 + 3  # inputs, weights, gradients of three layers


@pytest.mark.parametrize("rank_over", ["example", "batch"])
def test_kept_indices_are_those_of_every_recorded_step(rank_over):
    work = traced(hwsim.load_model("mlp_mnist", hidden=20), sparse=SparseBackprop(k=4, rank_over=rank_over))
    assert work.recorded_steps == (0, 1, 2)
    assert len(work.selections) == 2
    for selection in work.selections.values():
        for step in range(3):
            counts = selection.row_counts(step)
            assert len(counts) == 10 and counts.max() <= 4
            assert selection.indices[step].dtype.name == "int32" and selection.indices[step].max() < 20
        assert len({indices.tobytes() for indices in selection.indices}) > 1, "steps differ"
    dense = work.dense()
    assert not dense.selections
    plain = traced(hwsim.load_model("mlp_mnist", hidden=20))
    assert [(op.kind, op.m, op.n, op.k) for op in dense.ops] == [(op.kind, op.m, op.n, op.k) for op in plain.ops]


def test_densities_are_shares_of_what_was_not_zero():
    work = traced(hwsim.load_model("mlp_mnist", hidden=20))
    for name in ("relu_output", "relu.output", "dropout.output"):
        if name in work.tensors:
            assert all(0.1 < d < 0.9 for d in work.tensors[name].density)
    gradients = [t for t in work.tensors.values() if t.role == "gradient" and t.density]
    assert len(gradients) == 3 and all(len(t.density) == 3 for t in gradients)


def test_optimizer_states_are_traffic():
    counts = {}
    for optimizer in ("sgd", "adam", "adagrad"):
        work = traced(hwsim.load_model("mlp_mnist", hidden=20), optimizer=optimizer)
        op = next(op for op in work.ops if op.id == "fc1.weight.update")
        counts[optimizer] = (len(op.reads), len(op.writes))
    assert counts == {"sgd": (2, 1), "adam": (4, 3), "adagrad": (3, 2)}


def test_convolutions_carry_their_geometry():
    class Small(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1 = nn.Conv2d(1, 6, 3, padding=1)
            self.conv2 = nn.Conv2d(6, 4, 3, stride=2, groups=2)
            self.fc = nn.Linear(4 * 9, 10)

        def forward(self, x):
            return self.fc(torch.relu(self.conv2(torch.relu(self.conv1(x)))).flatten(1))

    work = traced(Small(), inputs=(1, 8, 8), sparse=SparseBackprop(fraction=0.1, unit="channel", rank_over="batch"))
    ops = {op.id: op for op in work.ops}
    first, second = ops["conv1.output"], ops["conv2.output"]
    assert (first.m, first.n, first.k, first.groups) == (10 * 64, 6, 9, 1)
    assert (second.m, second.n, second.k, second.groups) == (10 * 9, 2, 27, 2)
    assert second.conv.out_size == (3, 3) and second.conv.stride == (2, 2) and second.conv.in_channels == 3
    assert "conv2.grad_input" in ops and "conv1.grad_input" not in ops
    assert work.selections[ops["conv1.grad_weight"].selection].extent == 6


def test_gradients_that_meet_are_added():
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc1, self.fc2, self.fc3 = nn.Linear(784, 12), nn.Linear(12, 12), nn.Linear(12, 10)

        def forward(self, x):
            h = torch.relu(self.fc1(x))
            return self.fc3(h + torch.relu(self.fc2(h)))

    work = traced(Residual())
    accumulate = [op for op in work.ops if op.id.endswith(".grad.accumulate")]
    assert len(accumulate) == 1 and len(accumulate[0].reads) == 2 and accumulate[0].operations == {"add": 1}


def test_weights_that_are_used_twice_get_one_update():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(784, 784)
            self.out = nn.Linear(784, 10)

        def forward(self, x):
            return self.out(self.fc(torch.relu(self.fc(x))))

    work = traced(Tied())
    names = [op.id for op in work.ops]
    assert {"fc.output", "fc#1.output", "fc.weight.grad.accumulate", "fc.weight.update"} <= set(names)
    assert names.count("fc.weight.update") == 1


def test_split_and_join_undo_each_other_and_files_keep_everything(tmp_path):
    work = traced(hwsim.load_model("mlp_mnist", hidden=20), sparse=SparseBackprop(k=4))
    parts = split_workload(work)
    again = join_workloads(parts)
    assert same_graph(work, again) and again.recorded_steps == work.recorded_steps
    save_workload(again, tmp_path / "w.json")
    loaded = load_workload(tmp_path / "w.json")
    for name, selection in work.selections.items():
        for one, other in zip(selection.indices, loaded.selections[name].indices, strict=True):
            assert (one == other).all()
    other = traced(hwsim.load_model("mlp_mnist", hidden=21))
    with pytest.raises(hwsim.SpecError, match="differ in their calls or shapes"):
        join_workloads([parts[0], other])


class Sequence(nn.Module):
    """Every kind of layer whose parts the graph must keep together."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(20, 16)
        self.lstm = nn.LSTM(16, 8, batch_first=True, bidirectional=True, num_layers=2)
        self.block = nn.TransformerEncoderLayer(16, 2, 24, batch_first=True)
        self.qkv = nn.Linear(16, 48)
        self.fc = nn.Linear(16, 10)

    def forward(self, x):
        h = self.block(self.lstm(self.words(x))[0])
        q, k, v = self.qkv(h).reshape(*h.shape[:2], 3, 16).permute(2, 0, 1, 3)
        return self.fc(nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True))


def test_recurrent_and_attention_graphs_are_whole():
    torch.manual_seed(0)
    split = Split(torch.randint(0, 20, (8, 5)).numpy(), torch.randint(0, 10, (8, 5)).numpy())
    data = Dataset("noise", split, split, split, tuple("0123456789"), "0")
    network = Sequence()
    work = train(network, FP8, data, recipe=Recipe(batch=4, epochs=1, recorded_steps=2)).workload
    updated = {op.reads[0] for op in work.ops if op.kind is OpKind.UPDATE}
    assert updated == {name for name, _ in network.named_parameters()}, "each parameter's gradient found its way"
    made = {t.id for t in work.tensors.values() if t.persistent or t.role == "input"}
    for op in work.ops:
        assert set(op.reads) <= made, op.id
        made |= set(op.writes)
    axes = {op.id: (op.m, op.n, op.k, op.groups) for op in work.ops if op.kind is OpKind.GEMM}
    assert axes["lstm.l1_reverse.state#4.output"] == (4, 32, 8, 1)
    assert axes["lstm.l0.input.grad_input"] == (20, 16, 32, 1)
    assert axes["block.self_attn.scores.output"] == (5, 5, 8, 8)
    assert axes["block.self_attn.values.grad_weight"] == (8, 5, 5, 8)
