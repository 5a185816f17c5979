"""The operators that a .pt2 file may name: arithmetic on tensors and sizes; none reads files or runs code.

Those of convolutional networks as torch.export writes them. Not among them: what returns memory that nobody wrote
(empty), gives a tensor other strides than its own (as_strided), or draws random numbers.
"""

import operator
from collections.abc import Callable
from typing import Any

import torch

# Overloads of torch.ops.aten.
_NAMES = """
abs.default add.Scalar add.Tensor add_.Scalar add_.Tensor addcmul.default addmm.default div.Scalar div.Tensor
div.Tensor_mode div_.Scalar div_.Tensor exp.default floor.default floor_divide.default floor_divide.Scalar log.default
maximum.default minimum.default mul.Scalar mul.Tensor mul_.Scalar mul_.Tensor neg.default pow.Tensor_Scalar
reciprocal.default remainder.Scalar remainder.Tensor round.default rsqrt.default rsub.Scalar sqrt.default square.default
sub.Scalar sub.Tensor sub_.Scalar sub_.Tensor ceil.default cos.default
cumsum.default pow.Scalar sin.default

bmm.default conv1d.default conv1d.padding conv2d.default conv2d.padding conv_transpose2d.input linear.default
matmul.default mm.default scaled_dot_product_attention.default

clamp.default clamp_.default clamp_max.default clamp_min.default elu.default elu_.default gelu.default
hardsigmoid.default hardsigmoid_.default hardswish.default hardswish_.default hardtanh.default hardtanh_.default
leaky_relu.default leaky_relu_.default log_softmax.int mish.default mish_.default prelu.default relu.default
relu_.default relu6.default relu6_.default sigmoid.default sigmoid_.default silu.default silu_.default softmax.int
softplus.default tanh.default tanh_.default

batch_norm.default dropout.default dropout_.default feature_dropout.default group_norm.default instance_norm.default
layer_norm.default linalg_vector_norm.default rms_norm.default

adaptive_avg_pool2d.default adaptive_max_pool2d.default amax.default amin.default avg_pool2d.default max.dim
max_pool2d.default mean.default mean.dim std.correction sum.default sum.dim_IntList var.correction var_mean.correction

alias.default cat.default chunk.default clone.default constant_pad_nd.default contiguous.default detach.default
expand.default
expand_as.default flatten.using_ints flip.default gather.default index.Tensor index_select.default
lift_fresh_copy.default narrow.default pad.default permute.default pixel_shuffle.default pixel_unshuffle.default
repeat.default reshape.default reshape_as.default
roll.default select.int slice.Tensor split.Tensor split_with_sizes.default squeeze.default squeeze.dim squeeze.dims
stack.default t.default transpose.int unbind.int unflatten.int unsqueeze.default upsample_bilinear2d.vec
upsample_nearest2d.vec view.default

arange.default arange.start arange.start_step full.default full_like.default ones.default ones_like.default
zeros.default zeros_like.default

bitwise_not.default eq.Scalar eq.Tensor ge.Scalar ge.Tensor gt.Scalar gt.Tensor le.Scalar le.Tensor logical_and.default
logical_not.default lt.Scalar lt.Tensor ne.Scalar ne.Tensor where.self

sym_numel.default sym_size.int to.device to.dtype to.dtype_layout type_as.default
"""
_ATEN = frozenset(_NAMES.split())

# Statements on sizes and types, which PyTorch made while it traced; they compute nothing that is used.
_STATEMENTS = """
_assert_scalar.default _assert_tensor_metadata.default promote_types.default sym_constrain_range.default
sym_constrain_range_for_size.default
"""
ASSERTIONS = frozenset(f"torch.ops.aten.{name}" for name in _STATEMENTS.split())

# No product is so large that computing with it takes time.
_LARGEST = 2**63


def _bounded(compute: Callable[..., Any]) -> Callable[..., Any]:
    def compute_size(*sizes: Any) -> Any:
        if not all(isinstance(size, int | float) for size in sizes):
            raise ValueError("an operator on sizes got something else")
        result = compute(*sizes)
        if not abs(result) < _LARGEST:
            raise ValueError("a size is too large")
        return result

    return compute_size


_ON_SIZES: dict[str, Callable[..., Any]] = {
    **{
        f"_operator.{name}": _bounded(getattr(operator, name))
        for name in ("add", "sub", "mul", "floordiv", "mod", "neg", "truediv", "eq", "ne", "lt", "le", "gt", "ge")
    },
    "torch.sym_max": _bounded(max),
    "torch.sym_min": _bounded(min),
}


def find_operator(name: str) -> Callable[..., Any]:
    """Return the operator of a name in a .pt2 file.

    Raises:
        ValueError: if it is not one of those known to be harmless.
    """
    if name in _ON_SIZES:
        return _ON_SIZES[name]
    overload = name.removeprefix("torch.ops.aten.")
    if overload == name or overload not in _ATEN:
        raise ValueError(f"the operator {name[:80]!r} is not among those of convolutional networks")
    packet, _, which = overload.partition(".")
    return getattr(getattr(torch.ops.aten, packet), which)
