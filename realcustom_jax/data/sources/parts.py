"""What every source gives: its rows in parts, each of which a worker reads alone and makes a shard of."""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Protocol

from realcustom_jax.data.rows import Row

if TYPE_CHECKING:
    from realcustom_jax.paths import AnyPath

_PART = 32 * 2**20  # bytes; what a kill loses of each worker
_ROWS = 10_000  # the same where pictures are small
_MOST = 1024  # parts of one source; each becomes a file that is open while training


@dataclasses.dataclass(frozen=True)
class BrokenRow:
    """A row that cannot be used: its place in its source, and why, without that place."""

    where: str
    reason: str

    def __str__(self) -> str:
        return f"{self.where}: {self.reason}"


class Part(Protocol):
    """Some rows of a source. It can be pickled, and says only where they are. One that knows how many rows it has, the
    broken ones with them, says it as `count`."""

    @property
    def name(self) -> str:
        """For messages."""

    def rows(self) -> Iterator[Row | BrokenRow]:
        """The rows in their order, one at a time. Their pictures may be readable only until the next one is asked for.
        Raises OSError, ValueError: nothing more of the part can be read."""


class Source(Protocol):
    """Rows that lie somewhere. It can be pickled."""

    def parts(self) -> Sequence[Part]:
        """The same list whenever it is asked, as long as the content is the same; no picture is read. Each part becomes
        one shard. Raises OSError, ValueError."""

    def identity(self, seen: "AnyPath") -> str:
        """Of the content: equal for the same rows and pictures, wherever they lie and whenever they were written.

        `seen` is a file of this source's own that keeps which files were read; a later call reads those that changed.
        Raises OSError, ValueError.
        """


def part_count(content: float, rows: int) -> int:
    """Into how many parts so many bytes of pictures in so many rows are cut: of about 32 MiB or 10,000 rows, 1024 at
    most."""
    return max(1, min(max(math.ceil(content / _PART), math.ceil(rows / _ROWS)), _MOST, rows))
