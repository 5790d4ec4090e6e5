"""Image sets, benchmarks, class orders and streams of tasks."""

from cilkit.data.benchmarks import Benchmark, load
from cilkit.data.imagesets import ImageSet
from cilkit.data.shards import ShardWriter, open_set
from cilkit.data.streams import SEEDS, Stream, Task, class_order, order_seed

__all__ = ["SEEDS", "Benchmark", "ImageSet", "ShardWriter", "Stream", "Task"]
__all__ += ["class_order", "load", "open_set", "order_seed"]
