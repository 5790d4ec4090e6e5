"""A pytest plugin (`-p tests.longest_first --no-loadscope-reorder`): the files that take longest start first.

xdist starts with the files of most tests; those of few long tests then come last, and one worker waits for the other.
The first notebook paints what the next ones train on: beside it runs what needs no paintings.
"""

LONGEST = """
06_generative_classifier.ipynb 04_slca-small.ipynb 02_image_synthesis-small.ipynb 05_generative_replay-small.ipynb
04_slca.ipynb 07_forgetting_analysis.ipynb 05_generative_replay.ipynb
test_every_learner.py test_resume.py test_execute.py test_presets.py test_paint.py test_launch.py test_chaos.py
test_gmm_plan.py test_assembled.py test_diffusion.py test_recipes.py test_incremental.py test_fit_generator.py
test_road.py test_vlm.py test_repainting.py test_gallery.py test_live.py test_learners_gmm.py test_benchmarks.py
""".split()
PLACES = {name: place for place, name in enumerate(LONGEST)}


def pytest_collection_modifyitems(items: list) -> None:
    items.sort(key=lambda item: PLACES.get(item.path.name, len(PLACES)))
