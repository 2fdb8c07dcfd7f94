"""Ranger, the optimiser that pSp and e4e were trained with."""

import torch


class Ranger(torch.optim.RAdam):
    """RAdam (Liu et al. 2019, arXiv 1908.03265) with Lookahead (Zhang et al. 2019, arXiv 1907.08610) and gradient
    centralisation (Yong et al. 2020, arXiv 2004.01461).

    Every ``period`` steps the slow weights move by ``alpha`` of the way to the weights, which continue from there. The
    gradient of a weight with more than one axis has its mean over all but the first axis taken off.

    Args:
        parameters: as for every torch optimiser.
        lr: learning rate.
        betas, eps, weight_decay: of RAdam; the defaults are pSp's.
        alpha: in (0, 1]; 1 is RAdam alone.
        period: steps between two moves of the slow weights, at least 1.
        centralise: False leaves gradients alone.
    """

    def __init__(
        self, parameters, lr=1e-4, betas=(0.95, 0.999), eps=1e-5, weight_decay=0.0, alpha=0.5, period=6,
        centralise=True,
    ):  # fmt: skip
        if not 0 < alpha <= 1 or not isinstance(period, int) or period < 1:
            raise ValueError(f"alpha must be in (0, 1] and period a positive integer, not {alpha} and {period!r}")
        super().__init__(parameters, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)
        self.alpha, self.period, self.centralise = alpha, period, centralise

    @torch.no_grad()
    def step(self, closure=None):
        """One step; a closure computes the loss again first, as for every torch optimiser."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        moved = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        for p in moved:
            if "slow" not in self.state[p]:
                self._begin(p)
            if self.centralise and p.ndim > 1:
                p.grad -= p.grad.mean(tuple(range(1, p.ndim)), keepdim=True)
        super().step()
        for p in moved:
            state = self.state[p]
            if int(state["step"]) % self.period == 0:
                state["slow"].lerp_(p, self.alpha)
                p.copy_(state["slow"])
        return loss

    def _begin(self, p: torch.Tensor) -> None:
        # RAdam fills a state only if it is empty: the slow weights must not come first.
        self.state[p].update(
            step=torch.tensor(0.0),
            exp_avg=torch.zeros_like(p, memory_format=torch.preserve_format),
            exp_avg_sq=torch.zeros_like(p, memory_format=torch.preserve_format),
            slow=p.detach().clone(memory_format=torch.preserve_format),
        )
