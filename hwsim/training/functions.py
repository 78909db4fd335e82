"""Every torch function that hwsim knows, and how it is treated under emulation. Names as `__name__` gives them.

A function that stands in no list here is an error that names it, or runs as torch does if the plan says
``uncovered: float32``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from torch import Tensor

from hwsim.training.attention import multi_head_attention_forward, scaled_dot_product_attention
from hwsim.training.convolution import conv1d, conv2d, refuse
from hwsim.training.elementwise import channel_dropout, dropout
from hwsim.training.linear import linear
from hwsim.training.product import addmm, bilinear, einsum, matmul, outer, reversed_matmul
from hwsim.training.recurrent import CELLS, layered, single
from hwsim.training.reducing import is_loss


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Looks at a tensor, or shows the same elements in another shape: no new values, nothing to store.
FREE = _names(
    """
    __get__ __set__ __len__ __bool__ __int__ __float__ __index__ __repr__ __hash__ __iter__ __format__ __contains__
    __setstate__ __reduce_ex__ __deepcopy__ __array__ __dlpack__ __invert__ __and__ __or__ __xor__
    size dim ndimension numel nelement element_size stride storage_offset storage data_ptr is_contiguous
    is_floating_point is_complex is_nonzero is_same_size is_pinned is_shared is_inference get_device item tolist numpy
    cpu cuda to type type_as float double int long bool half bfloat16 requires_grad_ detach detach_ retain_grad
    register_hook register_post_accumulate_grad_hook backward grad _backward_hooks has_names
    view view_as reshape reshape_as flatten unflatten squeeze unsqueeze transpose permute movedim moveaxis swapaxes
    swapdims t adjoint contiguous expand expand_as broadcast_to broadcast_tensors narrow select unfold chunk split
    split_with_sizes tensor_split unbind diagonal as_strided squeeze_ unsqueeze_ transpose_ t_ alias ravel
    hsplit vsplit atleast_1d atleast_2d atleast_3d real
    eq ne lt le gt ge isnan isinf isfinite equal allclose isclose __eq__ __ne__ __lt__ __le__ __gt__ __ge__
    logical_and logical_or logical_not logical_xor bitwise_and bitwise_or any all nonzero count_nonzero
    argmax argmin argsort searchsorted bucketize unique unique_consecutive bincount
    zeros ones full empty zeros_like ones_like full_like empty_like new_zeros new_ones new_full new_empty new_tensor
    tensor as_tensor from_numpy arange linspace eye tril_indices triu_indices one_hot rand randn rand_like randn_like
    randint randint_like randperm bernoulli multinomial scalar_tensor result_type promote_types can_cast
    _has_compatible_shallow_copy_type manual_seed is_tensor
    set_ resize_ share_memory_ record_stream is_set_to untyped_storage dtype layout device
    """
)

# Of these, the ones that give a tensor's parts: each part has a gradient of its own.
SPLITTING = _names("chunk split split_with_sizes tensor_split unbind hsplit vsplit __iter__")

# Of these, the ones whose result has a gradient to pass on.
DIFFERENTIABLE_VIEWS = SPLITTING | _names(
    """
    cpu cuda to type type_as float view view_as reshape reshape_as flatten unflatten squeeze unsqueeze transpose permute
    movedim moveaxis swapaxes swapdims t adjoint contiguous expand expand_as broadcast_to broadcast_tensors narrow
    select unfold diagonal as_strided alias ravel atleast_1d atleast_2d atleast_3d real
    """
)
VIEW_PROPERTIES = frozenset(getattr(Tensor, name).__get__ for name in ("T", "mT", "H", "mH"))

# Copies values, or puts zeros in their place: what comes out is representable if what went in was.
SELECTING = _names(
    """
    relu threshold max_pool1d max_pool2d max_pool3d max_pool1d_with_indices max_pool2d_with_indices
    boolean_dispatch adaptive_max_pool1d adaptive_max_pool2d fn
    _pack_padded_sequence _pad_packed_sequence masked_fill masked_select where clone
    cat concat concatenate stack hstack vstack dstack pad embedding
    index_select gather take take_along_dim __getitem__ __setitem__ copy_ fill_ zero_ flip roll repeat
    repeat_interleave tile tril triu abs neg __neg__ max min maximum minimum amax amin
    sort topk kthvalue median cummax cummin scatter index_put index_copy index_fill masked_scatter
    channel_shuffle pixel_shuffle pixel_unshuffle sign hardshrink
    """
)

# Computes new values elementwise.
ELEMENTWISE = _names(
    """
    add sub subtract rsub mul multiply div divide true_divide pow exp exp2 expm1 log log2 log10 log1p sqrt rsqrt
    reciprocal square sin cos tan asin acos atan atan2 sinh cosh tanh sigmoid erf erfc logit sinc
    gelu silu mish elu selu celu leaky_relu prelu softplus softsign logsigmoid hardsigmoid hardswish tanhshrink
    softshrink rrelu addcmul addcdiv lerp fmod remainder clamp clamp_min clamp_max relu6 hardtanh nan_to_num
    round floor ceil trunc
    __add__ __radd__ __iadd__ __sub__ __rsub__ __isub__ __mul__ __rmul__ __imul__ __truediv__ __rtruediv__
    __itruediv__ __div__ __rdiv__ __idiv__ __pow__ __rpow__ __ipow__ __mod__
    glu
    """
)

# Sums, or is built on sums: normalizations, softmax, losses, pooling by the mean.
REDUCING = _names(
    """
    _weight_norm embedding_bag
    sum mean var std var_mean std_mean norm vector_norm prod cumsum cumprod logsumexp softmax log_softmax softmin
    _softmax _log_softmax gumbel_softmax layer_norm rms_norm group_norm instance_norm batch_norm native_layer_norm
    local_response_norm normalize avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d
    adaptive_avg_pool3d lp_pool1d lp_pool2d interpolate upsample grid_sample scatter_add index_add scatter_reduce
    cosine_similarity pairwise_distance
    cross_entropy nll_loss nll_loss_nd mse_loss l1_loss smooth_l1_loss huber_loss binary_cross_entropy
    binary_cross_entropy_with_logits kl_div hinge_embedding_loss margin_ranking_loss multi_margin_loss
    soft_margin_loss poisson_nll_loss gaussian_nll_loss cosine_embedding_loss triplet_margin_loss multilabel_margin_loss
    """
)

# Their backward copies or zeros too, so that a gradient stays as it was stored.
PASSING = _names("relu threshold masked_fill where clone neg __neg__ cat concat concatenate stack flip roll")

LOSSES = frozenset(name for name in REDUCING if is_loss(name))

# Our own version of a function; called with the site, then the function's own arguments.
OWN: dict[str, Callable[..., Any]] = {
    "linear": linear,
    **dict.fromkeys(("matmul", "mm", "bmm", "mv", "dot", "vdot", "__matmul__"), matmul),
    "__rmatmul__": reversed_matmul,
    **dict.fromkeys(("addmm", "baddbmm", "addmv"), addmm),
    "einsum": einsum,
    "bilinear": bilinear,
    **dict.fromkeys(("outer", "ger"), outer),
    "scaled_dot_product_attention": scaled_dot_product_attention,
    "multi_head_attention_forward": multi_head_attention_forward,
    **{name: layered(name) for name in CELLS},
    **{f"{name}_cell": single(name) for name in CELLS},
    "conv1d": conv1d,
    "conv2d": conv2d,
    "dropout": dropout,
    **{f"dropout{axes}d": channel_dropout(axes) for axes in (1, 2, 3)},
    **{name: refuse(name, "only convolutions over one or two axes are") for name in ("conv3d", "conv_tbc")},
    **{
        f"conv_transpose{axes}d": refuse(
            f"conv_transpose{axes}d", "an Upsample, or a PixelShuffle, and a convolution in its place are"
        )
        for axes in (1, 2, 3)
    },
}


@cache
def treatment(name: str) -> str:
    """Return how a function is treated: own, free, selecting, elementwise, reducing or uncovered."""
    plain = name.rstrip("_") if name.endswith("_") and not name.endswith("__") else name
    for kind, names in (
        ("own", OWN),
        ("free", FREE),
        ("selecting", SELECTING),
        ("elementwise", ELEMENTWISE),
        ("reducing", REDUCING),
    ):
        if name in names or plain in names:
            return kind
    return "uncovered"
