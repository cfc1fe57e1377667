"""Others: explanations of layers that are not one policy on planes."""

from __future__ import annotations

import torch
from torch import Tensor

from .explanation import Explanation, record_gradient, record_x, record_y
from .steps import BACKWARD, OUTPUT, PARTS, STATISTICS, Steps, Worked, worked_first, worked_sum
from .values import first_of
from .views import axes_of


class Contrast(Explanation):
    """ContrastNorm: each plane divided by its sum."""

    summary = "no statistics are shared: each plane is divided by its own sum"

    def __init__(self, x: Tensor, eps: float) -> None:
        super().__init__()
        self.x, self.eps = x, eps

    def _divisor(self, x: Tensor) -> Tensor:
        return x.sum((2, 3), keepdim=True) + self.eps

    def forward(self, steps: Steps, x: Tensor) -> Tensor:
        axes, divisor = axes_of(x), self._divisor(x)
        values = x.detach()[:1, :1].flatten().tolist()
        record_x(steps, self.x, axes)
        text, numbers = worked_sum(values)
        steps.add(
            STATISTICS,
            "divisor",
            divisor.flatten(1),
            ("N", "C"),
            f"divisor = sum(x) + eps of each plane, eps = {self.eps:g}",
            r"s = \sum_{i} x_{i} + \epsilon",
            unit="x",
            worked=Worked(f"{text} + {self.eps:g} = {{}}", (*numbers, first_of(divisor))),
        )
        return _divided(steps, self.x, x, divisor, "s")

    def backward(self, steps: Steps, x: Tensor, gradient: Tensor) -> dict[str, Tensor]:
        x = x.detach()
        axes, divisor = axes_of(x), self._divisor(x)
        record_gradient(steps, gradient, axes)
        products = (gradient * x).sum((2, 3), keepdim=True)
        steps.add(
            BACKWARD,
            "sum_g_x",
            products.flatten(1),
            ("N", "C"),
            "sum_g_x = sum(gradient * x) of each plane",
            r"\sum_i g_i x_i",
            unit="x",
        )
        a, c = 1 / divisor, -products / divisor.square()
        for name, values, formula, latex in (
            ("a", a, "a = 1 / divisor", r"a = \frac{1}{s}"),
            ("c", c, "c = -sum_g_x / divisor^2", r"c = -\frac{1}{s^2} \sum_i g_i x_i"),
        ):
            steps.add(BACKWARD, name, values.flatten(1), ("N", "C"), formula, latex, unit="1/x")
        dx = a * gradient + c
        steps.add(
            BACKWARD,
            "dx",
            dx,
            axes,
            "dx = a * gradient + c",
            r"\partial L / \partial x = a g + c",
            unit="1/x",
            worked=worked_first("{} * {} + {} = {}", a, gradient, c, dx),
        )
        return {"x": dx}


class LocalResponse(Explanation):
    """LocalResponseNorm: each element divided by a power of a sum over neighbouring channels."""

    exact = False
    summary = "neighbouring channels of one pixel share a sum of squares; no plane is pooled"

    def __init__(self, x: Tensor, size: int, alpha: float, beta: float, k: float) -> None:
        super().__init__()
        self.x, self.size, self.alpha, self.beta, self.k = x, size, alpha, beta, k

    def _window(self, values: Tensor, before: int) -> Tensor:
        """Sum over ``size`` neighbouring channels, of which ``before`` come first."""
        padding = [0, 0] * (values.dim() - 2) + [before, self.size - 1 - before]
        padded = torch.nn.functional.pad(values, padding)
        return padded.unfold(1, self.size, 1).sum(-1)

    def forward(self, steps: Steps, x: Tensor) -> Tensor:
        axes = axes_of(x)
        record_x(steps, self.x, axes)
        squares = self._window(x.square(), self.size // 2)
        half = self.size // 2
        first = x.detach()[:1, : self.size - half].flatten(2)[..., :1].flatten().tolist()
        text, numbers = worked_sum(first, "({})^2")
        steps.add(
            STATISTICS,
            "window",
            squares,
            axes,
            f"window = sum(x^2) over {self.size} neighbouring channels, from {half} before this "
            "one; missing channels count as 0",
            r"w_c = \sum_{j} x_{j}^2",
            unit="x^2",
            worked=Worked(f"{text} = {{}}", (*numbers, first_of(squares))),
        )
        divisor = (self.k + self.alpha / self.size * squares) ** self.beta
        steps.add(
            STATISTICS,
            "divisor",
            divisor,
            axes,
            f"divisor = (k + alpha / size * window)^beta; k = {self.k:g}, alpha = {self.alpha:g}, "
            f"size = {self.size}, beta = {self.beta:g}",
            r"d = \left(k + \frac{\alpha}{n} w\right)^{\beta}",
            worked=worked_first(
                f"({self.k:g} + {self.alpha:g} / {self.size} * {{}})^{self.beta:g} = {{}}",
                squares,
                divisor,
            ),
        )
        return _divided(steps, self.x, x, divisor, "d")

    def backward(self, steps: Steps, x: Tensor, gradient: Tensor) -> dict[str, Tensor]:
        x, axes = x.detach(), axes_of(x)
        record_gradient(steps, gradient, axes)
        base = self.k + self.alpha / self.size * self._window(x.square(), self.size // 2)
        # The channels whose windows contain this channel are a mirrored window.
        gradient_window = self._window(
            gradient * x * base ** (-self.beta - 1), (self.size - 1) // 2
        )
        steps.add(
            BACKWARD,
            "gradient_window",
            gradient_window,
            axes,
            "gradient_window = sum(gradient * x * (k + alpha / size * window)^(-beta - 1)), over "
            "the channels whose window contains this one",
            r"q_c = \sum_{j} g_j x_j\, (k + \frac{\alpha}{n} w_j)^{-\beta - 1}",
        )
        dx = (
            gradient * base**-self.beta
            - 2 * self.alpha * self.beta / self.size * x * gradient_window
        )
        steps.add(
            BACKWARD,
            "dx",
            dx,
            axes,
            "dx = gradient / divisor - 2 * alpha * beta / size * x * gradient_window",
            r"\partial L / \partial x = \frac{g}{d} - \frac{2 \alpha \beta}{n} x q",
            unit="1/x",
        )
        return {"x": dx}


class Split(Explanation):
    """Consecutive channels that pass through layers of their own, as in IBN.

    Args:
        x: the input, in its own dtype.
        parts: explanation and number of channels of each layer, by the name of the layer.
    """

    def __init__(self, x: Tensor, parts: dict[str, tuple[Explanation, int]]) -> None:
        super().__init__()
        self.x = x
        self.parts = {name: part for name, (part, _) in parts.items()}
        self.sizes = [size for _, size in parts.values()]
        self.exact = all(part.exact for part in self.parts.values())
        for name, part in self.parts.items():
            self.leaves.update({f"{name}.{leaf}": value for leaf, value in part.leaves.items()})
            self.notes += [f"{name}: {note}" for note in part.notes]
        ends = [sum(self.sizes[: i + 1]) for i in range(len(self.sizes))]
        self.summary = "; ".join(
            f"channels {end - size} to {end - 1} through {name}: {part.summary}"
            for (name, part), size, end in zip(self.parts.items(), self.sizes, ends, strict=True)
        )

    def forward(self, steps: Steps, x: Tensor) -> Tensor:
        axes = axes_of(x)
        record_x(steps, self.x, axes)
        found = []
        for (name, part), values in zip(
            self.parts.items(), torch.split(x, self.sizes, 1), strict=True
        ):
            inner = Steps(f"{name}.")
            found.append(part.forward(inner, values))
            steps.recorded += inner.recorded
        y = torch.cat(found, 1)
        names = ", ".join(f"{name}.y" for name in self.parts)
        steps.add(OUTPUT, "y", y.to(self.x.dtype), axes, f"y = {names}, side by side", "y")
        steps.recorded.sort(key=lambda step: PARTS.index(step.part))
        return y

    def backward(self, steps: Steps, x: Tensor, gradient: Tensor) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        pieces = []
        for (name, part), values, arriving in zip(
            self.parts.items(),
            torch.split(x, self.sizes, 1),
            torch.split(gradient, self.sizes, 1),
            strict=True,
        ):
            inner = Steps(f"{name}.")
            gradients = part.backward(inner, values, arriving)
            pieces.append(gradients.pop("x"))
            found |= {f"{name}.{leaf}": value for leaf, value in gradients.items()}
            steps.recorded += inner.recorded
        found["x"] = torch.cat(pieces, 1)
        names = ", ".join(f"{name}.dx" for name in self.parts)
        steps.add(
            BACKWARD,
            "dx",
            found["x"],
            axes_of(x),
            f"dx = {names}, side by side",
            r"\partial L / \partial x",
            unit="1/x",
        )
        return found


def _divided(steps: Steps, given: Tensor, x: Tensor, divisor: Tensor, letter: str) -> Tensor:
    """Record and return ``x / divisor``, and record y.

    Args:
        steps: the recorder.
        given: the input in its own dtype.
        x: the input in the dtype of the statistics.
        divisor: a tensor that broadcasts to x.
        letter: the LaTeX letter of the divisor.
    """
    axes, y = axes_of(x), x / divisor
    steps.add(
        OUTPUT,
        "divided",
        y,
        axes,
        "divided = x / divisor",
        rf"\frac{{x}}{{{letter}}}",
        worked=worked_first("{} / {} = {}", x, divisor, y),
    )
    record_y(steps, y, given, axes)
    return y
