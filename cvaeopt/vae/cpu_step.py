"""A training step on a CPU. The clips are cut into pieces, and several threads compute the pieces in parallel.

If several threads share one operation, they wait for each other at the end of the operation, hundreds of times per
step. The operations of this network are small, so waiting takes more than half of the time of the second core.
Clips depend on each other only through the label encoder's statistics, and no gradient crosses time. So each piece has
its own forward and backward pass. Without teacher forcing, a piece starts from the previous piece's last prediction.
If gradients cross time (`detach` is off), a clip without teacher forcing is a single piece.

The pieces depend only on the batch size and on the length of the clips, and gradients are added in a fixed order. So
the result is the same for every number of threads, bit for bit.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn import Parameter

from cvaeopt.vae.loss import ClipLoss, LossSettings, loss_given_poses
from cvaeopt.vae.model import CVAE

T = TypeVar("T")

_MIN_PIECES = 4
"""The smallest number of pieces in a step, so that even a batch of one clip keeps several threads busy. A short clip is
cut into fewer pieces, see `_MIN_FRAMES`."""

_MIN_FRAMES = 3
"""The smallest number of frames in a piece. Shorter pieces have more overhead: with pieces of one frame, a step takes
1.5 times as long."""


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Inside the block each operation of torch runs on the current thread alone.

    The operations are so small that sharing an operation is slow. A validation frame at F_dim 32 took 19 ms on two
    threads, and 10 ms on one thread.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def cuts(batch: int, steps: int) -> list[slice]:
    """The pieces of a clip with `steps` predicted frames, in a batch of `batch` clips.

    The lengths of the pieces differ by at most one frame.
    """
    count = max(1, min(math.ceil(_MIN_PIECES / batch), steps // _MIN_FRAMES))
    ends = [round(steps * (piece + 1) / count) for piece in range(count)]
    return [slice(start, end) for start, end in zip([0, *ends], ends, strict=False)]


@dataclass(frozen=True)
class _Gradients:
    """The results of one piece after its backward pass.

    loss         the loss terms of the piece, detached
    parameters   the gradients of the parameters that are used after the BatchNorm
    entered      the gradient with respect to the BatchNorm's output for the labels of the piece
    """

    loss: ClipLoss
    parameters: tuple[Tensor, ...]
    entered: Tensor


@dataclass(frozen=True)
class _Step:
    """The part of a training step that comes after the label encoder's BatchNorm.

    known        the BatchNorm's output, (B, T - 1, L / 2, H, W)
    parameters   the parameters that are used after the BatchNorm
    """

    model: CVAE
    frames: Tensor
    known: Tensor
    eps: Tensor
    beta: float
    settings: LossSettings
    parameters: list[Parameter]

    def forward(self, clip: int, span: slice, first: Tensor | None) -> tuple[Callable[[], _Gradients], Tensor]:
        """Run the forward pass of a piece. Return a function that runs the backward pass, and the last prediction.

        first   (1, 3, H, W), the frame before the piece; None: the true frame is used
        """
        frames = self.frames[clip : clip + 1, span.start : span.stop + 1]
        if first is not None:
            frames = torch.cat([first[:, None], frames[:, 1:]], 1)
        entered = self.known[clip, span].requires_grad_()
        poses = self.model.label_transformation.after_norm(entered)[None]
        loss, last = loss_given_poses(self.model, frames, poses, self.eps[clip : clip + 1, span], self.settings)
        # Each thread numbers its autograd nodes separately. Autograd visits nodes, and so adds gradients, in the order
        # of these numbers. So the last node, `total`, is created here, in the thread that runs the forward pass.
        total = loss.total(self.beta) / len(self.frames)

        def backward() -> _Gradients:
            *gradients, of_entered = torch.autograd.grad(total, [*self.parameters, entered])
            detached = ClipLoss(loss.mse.detach(), loss.kl.detach(), loss.frames)
            return _Gradients(detached, tuple(gradients), of_entered)

        return backward, last


class StepThreads:
    """A pool of `threads` threads for training steps; `close` ends the threads.

    If `threads` is 1, there is no pool: the work is done in the caller's thread.
    """

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._pool = (
            ThreadPoolExecutor(threads, "cpu-step", initializer=torch.set_num_threads, initargs=(1,))
            if threads > 1
            else None
        )

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown()

    def backward(
        self, model: CVAE, frames: Tensor, labels: Tensor, eps: Tensor, beta: float, settings: LossSettings
    ) -> ClipLoss:
        """The loss terms of a step. Every parameter's `grad` is replaced by the gradient of the total loss, or by None.

        The result equals that of `clip_loss(...)` and `.total(beta).backward()`. The arguments are those of
        `clip_loss`.
        """
        batch, steps = frames.shape[0], frames.shape[1] - 1
        model.zero_grad(set_to_none=True)  # a parameter that the loss does not depend on keeps the gradient None
        encoder = model.label_transformation
        entry = [*encoder[0].parameters(), *encoder[1].parameters()]
        norm = list(encoder.norm.parameters())
        before = {id(parameter) for parameter in (*entry, *norm)}
        if settings.only_kl:
            unused = chain(model.Decoder_Fusion.parameters(), model.Generator.parameters())
            before |= {id(parameter) for parameter in unused}
        behind = [parameter for parameter in model.parameters() if id(parameter) not in before]

        # The BatchNorm's statistics depend on all labels, so only this layer is computed for all pieces at once.
        entries = self._map(lambda clip: encoder.before_norm(labels[clip, 1:]), range(batch))
        joined = torch.cat([features.detach() for features in entries]).requires_grad_()
        normalised = encoder.normalised(joined, steps, settings.statistics).unflatten(0, (batch, steps))
        step = _Step(model, frames, normalised.detach(), eps, beta, settings, behind)
        pieces = self._pieces(step, [slice(0, steps)] if settings.crosses_time else cuts(batch, steps))
        through, *norm_gradients = torch.autograd.grad(
            normalised, [joined, *norm], torch.cat([piece.entered for piece in pieces]).unflatten(0, (batch, steps))
        )
        by_clip = through.unflatten(0, (batch, steps))
        entry_gradients = self._map(lambda clip: torch.autograd.grad(entries[clip], entry, by_clip[clip]), range(batch))

        _set_gradients(behind, [piece.parameters for piece in pieces])
        _set_gradients(norm, [norm_gradients])
        _set_gradients(entry, entry_gradients)
        share = [piece.loss.frames / (batch * steps) for piece in pieces]
        return ClipLoss(
            torch.stack([piece.loss.mse * part for piece, part in zip(pieces, share, strict=True)]).sum(),
            torch.stack([piece.loss.kl * part for piece, part in zip(pieces, share, strict=True)]).sum(),
            steps,
        )

    def _pieces(self, step: _Step, spans: list[slice]) -> list[_Gradients]:
        """The gradients of all pieces, ordered by clip and then by time."""
        clips = range(len(step.frames))
        if step.settings.forced:
            started = [
                self._start(lambda clip, span: step.forward(clip, span, None)[0](), clip, span)
                for clip in clips
                for span in spans
            ]
            return [piece.result() for piece in started]

        def free_clip(clip: int) -> list[Future[_Gradients]]:
            pieces, last = [], None
            for span in spans:
                backward, last = step.forward(clip, span, last)
                # If a thread is idle, it runs the backward pass of this piece while the next piece is predicted.
                pieces.append(self._start(backward) if len(clips) < self.threads else _completed(backward()))
            return pieces

        started_clips = [self._start(free_clip, clip) for clip in clips]
        return [piece.result() for piece in chain.from_iterable(clip.result() for clip in started_clips)]

    def _start(self, work: Callable[..., T], *arguments: object) -> Future[T]:
        return _completed(work(*arguments)) if self._pool is None else self._pool.submit(work, *arguments)

    def _map(self, work: Callable[[int], T], items: Iterable[int]) -> list[T]:
        return list(map(work, items) if self._pool is None else self._pool.map(work, items))


def _completed(result: T) -> Future[T]:
    future: Future[T] = Future()
    future.set_result(result)
    return future


def _set_gradients(parameters: list[Parameter], parts: Iterable[Iterable[Tensor]]) -> None:
    """Set the gradients of `parameters` to the sum of `parts`. The parts are added in the given order.

    Each gradient has the memory layout of its parameter, because the optimizer's fused kernels read both by address.
    """
    sums = [torch.zeros_like(parameter) for parameter in parameters]
    for part in parts:
        torch._foreach_add_(sums, list(part))
    for parameter, gradient in zip(parameters, sums, strict=True):
        parameter.grad = gradient
