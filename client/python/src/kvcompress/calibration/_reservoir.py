"""A sample of rows of which more and more come."""

import torch


class Reservoir:
    """At most `size` of all rows that were added, each with the same chance. The same rows and seed give the same
    sample."""

    def __init__(self, size: int, seed: int):
        self._size = size
        self._generator = torch.Generator().manual_seed(seed)
        # A row stays while its draw is among the least.
        self._draws = torch.empty(0)
        self.rows = torch.empty(0)

    def add(self, rows: torch.Tensor) -> None:
        """Of [rows, width]."""
        draws = torch.rand(len(rows), generator=self._generator, dtype=torch.float64)
        if len(self._draws) + len(rows) <= self._size:
            self._draws = torch.cat((self._draws, draws))
            self.rows = torch.cat((self.rows, rows)) if len(self.rows) else rows.clone()
            return
        held = len(self._draws)
        least = torch.cat((self._draws, draws)).topk(self._size, largest=False, sorted=False).indices
        stays = torch.zeros(held, dtype=torch.bool)
        stays[least[least < held]] = True
        come = least[least >= held] - held
        # In place where the sample is full: few rows change of many.
        vacant = (~stays).nonzero().flatten()
        self._draws[vacant], self.rows[vacant] = draws[come[: len(vacant)]], rows[come[: len(vacant)]]
        rest = come[len(vacant) :]
        self._draws = torch.cat((self._draws, draws[rest]))
        self.rows = torch.cat((self.rows, rows[rest])) if len(rest) else self.rows
