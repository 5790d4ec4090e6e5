"""Image sets, benchmarks, class orders and streams of tasks."""

from cilkit.data.benchmarks import Benchmark, load
from cilkit.data.shards import ImageSet, ShardWriter
from cilkit.data.streams import SEEDS, Stream, Task, class_order, order_seed

__all__ = ["SEEDS", "Benchmark", "ImageSet", "ShardWriter", "Stream", "Task", "class_order", "load", "order_seed"]
