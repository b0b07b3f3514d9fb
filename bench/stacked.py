"""K networks of equal widths trained as one: what `bench.together` compares threads and processes with.

All weights lie in one (K, P) matrix, one row a member. A step maps the loss over the rows (`torch.func.vmap` makes
grouped convolutions of the members' convolutions) and updates the matrix, with a learning rate, a beta and a gradient
norm for each row. Members whose coin says "forced" and members whose coin says "free" are two calls: the two losses
are different programs. Order of clips, coins and noise are those of a lone run, so that a member ends where it would
have ended alone, up to rounding (tests/test_together.py).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from cvaeopt.config import Config
from cvaeopt.vae.dataset import Dataset, clip_starts
from cvaeopt.vae.loss import clip_loss
from cvaeopt.vae.model import CVAE
from cvaeopt.vae.rollout import generator, to_float
from cvaeopt.vae.schedules import beta_at, lr_at, tfr_at

_FREE_TO_DIFFER = {"seed", "lr", "lr_scheduler", "lr_min", "gamma", "milestones", "grad_clip"}
_BETAS, _EPS = (0.9, 0.999), 1e-8  # torch's Adam


class _Loss(nn.Module):
    """`clip_loss` as the forward of a module, which is what `functional_call` can call."""

    def __init__(self, model: CVAE, config: Config) -> None:
        super().__init__()
        self.model = model
        self.config = config

    def forward(self, frames: Tensor, labels: Tensor, eps: Tensor, beta: Tensor, forced: bool) -> tuple[Tensor, ...]:
        """(what is minimised, mse, kl) of one member's batch."""
        config = self.config
        loss = clip_loss(
            self.model,
            frames,
            labels,
            eps,
            forced=forced,
            output=config.output,
            kl_norm=config.kl_norm,
            statistics="batch" if config.label_bn == "clip" else "frame",
            free_step="sequential",  # the other way asks for memory formats, which vmap does not know
        )
        return loss.total(beta), loss.mse, loss.kl


class Stack:
    """The runs of `configs` side by side on one device; Adam without weight decay, single precision.

    Settings that say how the loss is computed, or how long an epoch is, must be equal (ValueError); learning rates,
    forcing and KL schedules may differ.
    """

    def __init__(self, configs: Sequence[Config], data: Dataset, device: str = "cpu") -> None:
        first = configs[0]
        for config in configs:
            differing = {
                name
                for name, value in config.plain().items()
                if value != first.plain()[name]
                and name not in _FREE_TO_DIFFER
                and not name.startswith(("tfr", "kl_anneal"))
            }
            if differing or config.optim != "Adam" or config.weight_decay or config.skip_steps or config.ema:
                raise ValueError(f"These runs cannot be stacked: {sorted(differing) or config.optim}")
        self.configs = list(configs)
        self.device = torch.device(device)
        self.epoch = 0
        self.frames = torch.tensor(data.train.frames, device=device)
        self.labels = torch.tensor(data.train.labels, device=device)
        self.starts = torch.tensor(clip_starts(len(data.train), first.train_vi_len, first.partial))
        modules: list[nn.Module] = [_Loss(CVAE.of(config), config).to(device) for config in configs]
        parameters, self.buffers = stack_module_state(modules)
        self.skeleton = modules[0]
        self.names = list(parameters)
        self.shapes = [parameters[name].shape[1:] for name in self.names]
        flat = torch.cat([parameters[name].detach().flatten(1) for name in self.names], 1)
        self.weights = flat.requires_grad_()  # (K, P)
        self.mean, self.square = torch.zeros_like(flat), torch.zeros_like(flat)  # Adam's
        self.steps = 0

    def state(self, member: int) -> dict[str, Tensor]:
        """The `state_dict` of one member's network."""
        rows = {**self._views(self.weights.detach()), **self.buffers}
        return {name.removeprefix("model."): value[member].clone() for name, value in rows.items()}

    def train_epoch(self) -> Tensor:
        """Mean squared error and KL per frame of each member, averaged over the epoch's steps: (K, 2)."""
        first, epoch, members = self.configs[0], self.epoch, range(len(self.configs))
        steps = len(self.starts) // first.batch_size
        orders = torch.stack([self._order(config) for config in self.configs])  # (K, clips)
        coins = [self._coins(config, steps) for config in self.configs]
        draws = [generator(self.device, "posterior noise", config.seed, epoch) for config in self.configs]
        shape = (first.batch_size, first.train_vi_len - 1, first.N_dim, first.frame_H, first.frame_W)
        lr = torch.tensor([lr_at(config, epoch) for config in self.configs], device=self.device)[:, None]
        beta = torch.tensor([beta_at(config, epoch) for config in self.configs], device=self.device)
        window = torch.arange(first.train_vi_len)
        sums = torch.zeros(len(self.configs), 2, dtype=torch.float64, device=self.device)
        for step in range(steps):
            chosen = orders[:, step * first.batch_size : (step + 1) * first.batch_size]  # (K, B)
            rows = (chosen[..., None] + window).to(self.device)  # (K, B, T)
            eps = torch.stack([torch.randn(shape, generator=draws[k], device=self.device) for k in members])
            for forced in (True, False):
                group = torch.tensor([k for k in members if coins[k][step] == forced], device=self.device)
                if len(group):
                    sums[group] += self._gradients(group, rows[group], eps[group], beta[group], forced)
            self._update(lr)
        self.epoch += 1
        return sums / steps

    def _gradients(self, group: Tensor, rows: Tensor, eps: Tensor, beta: Tensor, forced: bool) -> Tensor:
        """Add the gradients of the members in `group` to `weights.grad`; their mse and kl, (G, 2)."""
        parameters = self._views(self.weights[group])
        buffers = {name: value[group] for name, value in self.buffers.items()}  # copies, which the forward moves

        def one(own: dict[str, Tensor], moving: dict[str, Tensor], *batch: Tensor) -> tuple[Tensor, ...]:
            answer: tuple[Tensor, ...] = functional_call(self.skeleton, (own, moving), (*batch, forced))
            return answer

        frames, labels = to_float(self.frames[rows]), to_float(self.labels[rows])  # (G, B, T, 3, H, W)
        total, mse, kl = vmap(one)(parameters, buffers, frames, labels, eps, beta)
        total.sum().backward()
        for name, value in buffers.items():
            self.buffers[name][group] = value
        return torch.stack([mse, kl], 1).detach().double()

    @torch.no_grad()
    def _update(self, lr: Tensor) -> None:
        """One step of Adam, each member's gradient clipped by its own norm."""
        gradient = self.weights.grad
        assert gradient is not None
        limit = torch.tensor([config.grad_clip for config in self.configs], device=self.device)[:, None]
        gradient *= (limit / (gradient.norm(dim=1, keepdim=True) + 1e-6)).clamp(max=1)
        self.steps += 1
        self.mean.lerp_(gradient, 1 - _BETAS[0])
        self.square.mul_(_BETAS[1]).addcmul_(gradient, gradient, value=1 - _BETAS[1])
        unbiased = (self.square / (1 - _BETAS[1] ** self.steps)).sqrt_().add_(_EPS)
        self.weights -= lr / (1 - _BETAS[0] ** self.steps) * self.mean / unbiased
        self.weights.grad = None

    def _views(self, rows: Tensor) -> dict[str, Tensor]:
        """The parameters by name, each with the members as its first dimension."""
        parts = rows.split([shape.numel() for shape in self.shapes], 1)
        return {
            name: part.unflatten(1, shape) for name, part, shape in zip(self.names, parts, self.shapes, strict=True)
        }

    def _order(self, config: Config) -> Tensor:
        if not config.shuffle:
            return self.starts
        draws = generator("cpu", "clip order", config.seed, self.epoch)
        return self.starts[torch.randperm(len(self.starts), generator=draws)]

    def _coins(self, config: Config, steps: int) -> list[bool]:
        draws = generator("cpu", "forcing coin", config.seed, self.epoch)
        rate = tfr_at(config, self.epoch)
        count = 1 if config.tfr_coin == "epoch" else steps
        coins = [bool(coin) for coin in torch.rand(count, generator=draws) < rate]
        return coins * (steps // count)
