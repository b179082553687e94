"""The parts of one checkpoint as a server reads them.

Invariant: nothing is read from a part before its digest was compared with the manifest's, once for all groups and
tables that are restored together; and the manifest is the one that the worker means.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from windlass_proto import checkpoint_format, tensor_file
from windlass_proto.checkpoint_format import Part
from windlass_proto.errors import CorruptionError
from windlass_proto.tensor_file import Place


class PartFiles:
    """A checkpoint's manifest, and its parts by need.

    Raises:
        CorruptionError: the manifest is torn, or is not the one of `manifest_digest`.
    """

    def __init__(self, folder: Path, manifest_digest: str) -> None:
        self.folder = folder
        self.manifest = checkpoint_format.read_manifest_untrusted(folder)
        self._places: dict[Path, dict[str, Place]] = {}
        if self.manifest.digest != manifest_digest:
            raise CorruptionError(
                "servers see another manifest than the worker",
                file=folder / checkpoint_format.MANIFEST,
                digest=self.manifest.digest,
                expected=manifest_digest,
                next_move="Give a folder that is the same for every worker and server.",
            )

    def places_untrusted(self, part: Part) -> dict[str, Place]:
        """Where the arrays of `part` lie; its digest is compared when it is first asked for.

        Raises:
            CorruptionError: it is missing, torn or altered.
        """
        file = part.path(self.folder)
        places = self._places.get(file)
        if places is None:
            digest = tensor_file.digest_of(file, part.nbytes)
            if digest != part.digest:
                raise CorruptionError(
                    "a part of a checkpoint is not what was written",
                    file=file,
                    digest=digest,
                    expected=part.digest,
                    next_move="Resume from an earlier checkpoint by naming its folder.",
                )
            places = self._places[file] = tensor_file.places_untrusted(file)
        return places

    def read_untrusted(self, part: Part, key: str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> npt.NDArray[Any]:
        """One array of `part`.

        Raises:
            CorruptionError: it is not there, or has another dtype or shape.
        """
        place = self.places_untrusted(part).get(key)
        if place is None:
            raise CorruptionError("a part lacks an array", file=part.path(self.folder), array=key)
        array = tensor_file.read(part.path(self.folder), place)
        if array.dtype != dtype or array.shape != shape:
            raise CorruptionError("a part holds an array of another kind", file=part.path(self.folder), array=key)
        return array
