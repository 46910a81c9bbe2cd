"""The target writes the text that its drafter is trained on: ``write_text``."""

from specdec.distill.write.options import Temperature, WriteOptions
from specdec.distill.write.shards import Manifest, Shard, read_manifest, read_shard
from specdec.distill.write.text import WriteProgress, write_text

__all__ = [
    "Manifest",
    "Shard",
    "Temperature",
    "WriteOptions",
    "WriteProgress",
    "read_manifest",
    "read_shard",
    "write_text",
]
