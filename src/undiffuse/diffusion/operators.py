"""Linear operators: from an image x to what is measured of it, A x.

An operator has two methods:

    apply(x (B, C, H, W)) -> A x, floats (B, ...)
    transpose(y (B, ...)) -> A^T y, (B, C, H, W)

To add one: a class that is built as Operator(shape=(C, H, W)), with `@OPERATORS.add`. Its options
are keyword-only and have defaults: `blur:sigma=2`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from undiffuse.base.errors import UserError
from undiffuse.base.lazy import lazy
from undiffuse.base.table import Table

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch
    from torch import Tensor
else:
    torch = lazy("torch")

OPERATORS = Table("operator")


class Operator(Protocol):
    """A linear map A of images."""

    def apply(self, x: Tensor) -> Tensor:
        """A x (B, ...) of images x (B, C, H, W)."""
        ...

    def transpose(self, y: Tensor) -> Tensor:
        """A^T y (B, C, H, W) of y (B, ...)."""
        ...


@OPERATORS.named("noise")
class Identity:
    """The image itself is measured, with noise."""

    def __init__(self, shape: tuple[int, int, int]) -> None:
        self.shape = shape

    def apply(self, x: Tensor) -> Tensor:
        return x

    def transpose(self, y: Tensor) -> Tensor:
        return y


class Separable:
    """Rows and columns are multiplied by matrices: x -> R x C^T.

    rows: (H', H). columns: (W', W). Both float64."""

    def __init__(self, rows: Tensor, columns: Tensor) -> None:
        self.rows, self.columns = rows, columns

    def apply(self, x: Tensor) -> Tensor:
        return self.rows.to(x) @ x @ self.columns.to(x).T

    def transpose(self, y: Tensor) -> Tensor:
        return self.rows.to(y).T @ y @ self.columns.to(y)


@OPERATORS.add
class Blur(Separable):
    """A Gaussian blur. sigma: its standard deviation, in pixels.

    Near the edges the weights are divided by their sum, so a flat image stays flat. Raises
    UserError for a sigma that is not positive."""

    def __init__(self, shape: tuple[int, int, int], *, sigma: float = 2.0) -> None:
        if sigma <= 0:
            raise UserError(f"operator blur: sigma must be more than 0 pixels, not {sigma:g}")
        super().__init__(*(self.matrix(side, sigma) for side in shape[1:]))

    @staticmethod
    def matrix(side: int, sigma: float) -> Tensor:
        at = torch.arange(side, dtype=torch.float64)
        weights = (-((at[:, None] - at) ** 2) / (2 * sigma**2)).exp()
        return weights / weights.sum(dim=1, keepdim=True)


@OPERATORS.add
class Downsample(Separable):
    """Means over squares of factor x factor pixels.

    Raises UserError where the factor does not divide the image's sides."""

    def __init__(self, shape: tuple[int, int, int], *, factor: int = 4) -> None:
        _, height, width = shape
        if factor < 1 or height % factor or width % factor:
            raise UserError(
                f"operator downsample: factor must divide the image's {width} x {height} pixels, "
                f"and {factor} does not"
            )
        super().__init__(*(self.matrix(side, factor) for side in shape[1:]))

    @staticmethod
    def matrix(side: int, factor: int) -> Tensor:
        eye = torch.eye(side // factor, dtype=torch.float64)
        return eye.repeat_interleave(factor, dim=1) / factor


class Mask:
    """Some pixels are measured, the others are not.

    kept: bool (H, W), or (1, H, W): which pixels are measured. What is not measured is 0."""

    def __init__(self, kept: Tensor) -> None:
        self.kept = kept

    def apply(self, x: Tensor) -> Tensor:
        return x * self.kept.to(x)

    def transpose(self, y: Tensor) -> Tensor:
        return y * self.kept.to(y)


@OPERATORS.named("mask")
def box_mask(
    shape: tuple[int, int, int], *, left: int = 0, top: int = 0, right: int = 0, bottom: int = 0
) -> Mask:
    """All pixels are measured, except those in a box.

    left, top, right, bottom: the sides of the box in pixels, as Pillow counts them: `right` and
    `bottom` are the first pixels after it. Raises UserError for a box that is empty or not inside
    the image."""
    _, height, width = shape
    if not (0 <= left < right <= width and 0 <= top < bottom <= height):
        raise UserError(
            f"the box from ({left}, {top}) to ({right}, {bottom}) is empty or not inside the image "
            f"of {width} x {height} pixels; give left,top,right,bottom"
        )
    kept = torch.ones(height, width, dtype=torch.bool)
    kept[top:bottom, left:right] = False
    return Mask(kept)


def operator_of(spec: str, shape: tuple[int, int, int]) -> Operator:
    """The operator that a spec such as "blur:sigma=2" names, for images of `shape` (C, H, W).

    Raises UserError for an unknown name, and for options that do not fit."""
    operator: Operator = OPERATORS[spec](shape)
    return operator


def dot(a: Tensor, b: Tensor) -> Tensor:
    """The scalar product of each image, (B, 1, ..., 1)."""
    return (a * b).sum(dim=tuple(range(1, a.ndim)), keepdim=True)


def conjugate_gradient(product: Callable[[Tensor], Tensor], b: Tensor, iterations: int) -> Tensor:
    """x (B, ...) with product(x) = b, for a linear map that is symmetric and positive.

    Each image is a system of its own. An image is finished when its error is 0, or where the map is
    not positive, as that of a network may be. Hestenes & Stiefel 1952."""
    x = torch.zeros_like(b)
    residual = direction = b
    square = dot(residual, residual)
    for _ in range(iterations):
        image = product(direction)
        curvature = dot(direction, image)
        going = (curvature > 0) & (square > 0)
        length = torch.where(going, square / curvature.where(going, 1.0), 0.0)
        x = x + length * direction
        residual = residual - length * image
        before, square = square, dot(residual, residual)
        gain = torch.where(going, square / before.where(going, 1.0), 0.0)
        direction = residual + gain * direction
    return x


def pseudo_inverse(operator: Operator, y: Tensor, iterations: int = 200) -> Tensor:
    """A^+ y (B, C, H, W): of the images that fit y best, the one of the smallest size.

    By conjugate gradients on A^T A x = A^T y. Fewer iterations let less of the noise through."""
    return conjugate_gradient(
        lambda x: operator.transpose(operator.apply(x)), operator.transpose(y), iterations
    )
