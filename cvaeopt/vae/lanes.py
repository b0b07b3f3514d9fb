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
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from cvaeopt.vae.loss import ClipLoss, FreeStep, loss_given_poses
from cvaeopt.vae.model import CVAE, Statistics
from cvaeopt.vae.rollout import Output

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
    poses: Tensor


Gradients = tuple[ClipLoss, list[Tensor], Tensor]
"""Loss terms (detached), gradients of the parameters beyond the label encoder, and of the pose features."""


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
        label_features = model.label_transformation.encode(labels[:, 1:], statistics)  # (B, T-1, L, H, W)
        known = label_features.detach()
        encoder = list(model.label_transformation.parameters())
        others = [
            parameter for name, parameter in model.named_parameters() if not name.startswith("label_transformation.")
        ]
        spans = cuts(batch, steps)

        def forward(clip: int, span: slice, first: Tensor | None) -> tuple[_Piece, Tensor]:
            own = frames[clip : clip + 1, span.start : span.stop + 1]
            if first is not None:
                own = torch.cat([first[:, None], own[:, 1:]], 1)
            poses = known[clip : clip + 1, span].requires_grad_()
            loss, last = loss_given_poses(
                model,
                own,
                poses,
                eps[clip : clip + 1, span],
                forced=forced,
                output=output,
                kl_norm=kl_norm,
                free_step=free_step,
            )
            return _Piece(loss, poses), last

        def gradients(piece: _Piece) -> Gradients:
            found = torch.autograd.grad(piece.loss.total(beta) / batch, [*others, piece.poses])
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

        pool = self._pool
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
        sums = [torch.zeros_like(parameter) for parameter in others]
        for clip_found in found:
            for _, piece_gradients, _ in clip_found:
                torch._foreach_add_(sums, piece_gradients)
        poses = torch.cat([torch.cat([one[2] for one in clip_found], 1) for clip_found in found])
        encoder_gradients = torch.autograd.grad(label_features, encoder, poses)
        for parameter, gradient in zip(others, sums, strict=True):
            parameter.grad = gradient
        for parameter, gradient in zip(encoder, encoder_gradients, strict=True):
            # The optimiser's fused kernels need the parameter's own memory layout.
            parameter.grad = torch.empty_like(parameter).copy_(gradient)
        losses = [one[0] for clip_found in found for one in clip_found]
        share = [loss.frames / (batch * steps) for loss in losses]
        return ClipLoss(
            torch.stack([loss.mse * part for loss, part in zip(losses, share, strict=True)]).sum(),
            torch.stack([loss.kl * part for loss, part in zip(losses, share, strict=True)]).sum(),
            steps,
        )


def _result(one: Gradients | Future[Gradients]) -> Gradients:
    return one.result() if isinstance(one, Future) else one
