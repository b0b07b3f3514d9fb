"""A training step on a CPU: its clips, cut into pieces, are spread over threads that each compute alone.

Several threads inside one operation pay for meeting at its end, hundreds of times a step; at the sizes of this network
that costs more than half of the second core. Clips share nothing but the label encoder's statistics, and no gradient
crosses time, so whole pieces of clips can be computed side by side instead: forward, backward, and the next one.

How a step is cut depends on the batch and the clip alone, and gradients are added in a fixed order: the result is the
same, bit for bit, for any number of threads.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal, TypeVar

import torch
from torch import Tensor
from torch.nn import Parameter

from cvaeopt.vae.loss import ClipLoss, FreeStep, loss_given_poses
from cvaeopt.vae.model import CVAE, Statistics
from cvaeopt.vae.rollout import Output

T = TypeVar("T")

_PIECES = 4
"""Pieces a step is cut into if its batch is smaller, so that a batch of one keeps several threads busy."""

_SHORTEST = 3
"""Frames of the shortest piece: the shorter, the more of a step is overhead (one frame each: 1.5 times the time)."""


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Operations of this thread use no other thread inside the block.

    They are small: on two threads a validation frame at F_dim 32 took 19 ms, on one 10 ms.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def cuts(batch: int, steps: int) -> list[slice]:
    """The pieces of a clip with `steps` predicted frames, equally long up to one frame."""
    count = max(1, min(math.ceil(_PIECES / batch), steps // _SHORTEST))
    ends = [round(steps * (piece + 1) / count) for piece in range(count)]
    return [slice(start, end) for start, end in zip([0, *ends], ends, strict=False)]


@dataclass(frozen=True)
class _Piece:
    """What the backward pass of a piece needs, or has found."""

    loss: ClipLoss
    total: Tensor  # the piece's share of what is minimised
    entered: Tensor  # what the BatchNorm has made of the piece's labels


Gradients = tuple[ClipLoss, list[Tensor], Tensor]
"""Loss terms (detached), gradients of the parameters behind the BatchNorm, and of what it has made of the labels."""


class Lanes:
    """`threads` threads for training steps; `close` ends them."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._pool = (
            ThreadPoolExecutor(threads, "lane", initializer=torch.set_num_threads, initargs=(1,))
            if threads > 1
            else None
        )

    def close(self) -> None:
        """End the threads."""
        if self._pool is not None:
            self._pool.shutdown()

    def _map(self, work: Callable[[int], T], items: Iterable[int]) -> list[T]:
        return list(map(work, items) if self._pool is None else self._pool.map(work, items))

    def backward(
        self,
        model: CVAE,
        frames: Tensor,
        labels: Tensor,
        eps: Tensor,
        beta: float,
        *,
        forced: bool,
        output: Output,
        kl_norm: Literal["batch", "element"],
        statistics: Statistics = "batch",
        free_step: FreeStep = "sequential",
    ) -> ClipLoss:
        """`clip_loss(...)` and `.total(beta).backward()`: the loss terms, with every parameter's `grad` set anew.

        The arguments are those of `clip_loss`.
        """
        batch, steps = frames.shape[0], frames.shape[1] - 1
        pool, encoder = self._pool, model.label_transformation
        spans = cuts(batch, steps)
        entry = [*encoder[0].parameters(), *encoder[1].parameters()]
        norm = list(encoder.norm.parameters())
        apart = {id(parameter) for parameter in (*entry, *norm)}
        others = [parameter for parameter in model.parameters() if id(parameter) not in apart]

        # The BatchNorm joins all labels, so it alone is computed in one piece, between two parts of the pieces.
        entries = self._map(lambda clip: encoder.before_norm(labels[clip, 1:]), range(batch))
        joined = torch.cat([one.detach() for one in entries]).requires_grad_()
        normalised = encoder.normalised(joined, steps, statistics).unflatten(0, (batch, steps))
        known = normalised.detach()  # (B, T-1, L / 2, H, W)

        def forward(clip: int, span: slice, first: Tensor | None) -> tuple[_Piece, Tensor]:
            own = frames[clip : clip + 1, span.start : span.stop + 1]
            if first is not None:
                own = torch.cat([first[:, None], own[:, 1:]], 1)
            entered = known[clip, span].requires_grad_()
            loss, last = loss_given_poses(
                model,
                own,
                encoder.after_norm(entered)[None],
                eps[clip : clip + 1, span],
                forced=forced,
                output=output,
                kl_norm=kl_norm,
                free_step=free_step,
            )
            # Autograd visits nodes in the order of numbers that each thread counts for itself, and gradients are added
            # in that order. So the thread that computes the piece also makes the last node.
            return _Piece(loss, loss.total(beta) / batch, entered), last

        def gradients(piece: _Piece) -> Gradients:
            found = torch.autograd.grad(piece.total, [*others, piece.entered])
            loss = piece.loss
            return ClipLoss(loss.mse.detach(), loss.kl.detach(), loss.frames), list(found[:-1]), found[-1]

        def forced_piece(clip: int, span: slice) -> Gradients:
            return gradients(forward(clip, span, None)[0])

        def free_clip(clip: int, hand_over: bool) -> list[Gradients | Future[Gradients]]:
            first = None
            done: list[Gradients | Future[Gradients]] = []
            for span in spans:
                piece, first = forward(clip, span, first)
                # With threads to spare, another one goes back through this piece while the next one is predicted.
                done.append(pool.submit(gradients, piece) if hand_over and pool is not None else gradients(piece))
            return done

        found: list[list[Gradients]]
        if pool is None:
            found = [
                [forced_piece(clip, span) for span in spans]
                if forced
                else [_result(one) for one in free_clip(clip, False)]
                for clip in range(batch)
            ]
        elif forced:
            waiting = [[pool.submit(forced_piece, clip, span) for span in spans] for clip in range(batch)]
            found = [[one.result() for one in clip] for clip in waiting]
        else:
            chains = [pool.submit(free_clip, clip, batch < self.threads) for clip in range(batch)]
            found = [[_result(one) for one in chain.result()] for chain in chains]

        behind = torch.cat([torch.cat([one[2] for one in clip_found]) for clip_found in found])
        through, *norm_gradients = torch.autograd.grad(normalised, [joined, *norm], behind.unflatten(0, (batch, steps)))
        entry_gradients = self._map(
            lambda clip: torch.autograd.grad(entries[clip], entry, through.unflatten(0, (batch, steps))[clip]),
            range(batch),
        )
        _set_gradients(others, [piece for clip_found in found for _, piece, _ in clip_found])
        _set_gradients(norm, [norm_gradients])
        _set_gradients(entry, entry_gradients)
        losses = [one[0] for clip_found in found for one in clip_found]
        share = [loss.frames / (batch * steps) for loss in losses]
        return ClipLoss(
            torch.stack([loss.mse * part for loss, part in zip(losses, share, strict=True)]).sum(),
            torch.stack([loss.kl * part for loss, part in zip(losses, share, strict=True)]).sum(),
            steps,
        )


def _set_gradients(parameters: list[Parameter], parts: Iterable[Iterable[Tensor]]) -> None:
    """Make the sum of `parts`, added in their order, the gradients of `parameters`.

    They get the parameters' own memory layout, because the optimiser's fused kernels go through both by address.
    """
    sums = [torch.zeros_like(parameter) for parameter in parameters]
    for part in parts:
        torch._foreach_add_(sums, list(part))
    for parameter, gradient in zip(parameters, sums, strict=True):
        parameter.grad = gradient


def _result(one: Gradients | Future[Gradients]) -> Gradients:
    return one.result() if isinstance(one, Future) else one
