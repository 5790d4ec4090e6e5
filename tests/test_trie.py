import numpy as np
import pytest
import torch

from cilkit.captioning.trie import Trie


def answers_at_random(seed):
    """Up to 30 answers of few different tokens, so that many begin alike, hold one another, or are the same."""
    random = np.random.default_rng(seed)
    return [random.integers(1, 4, random.integers(1, 7)).tolist() for _ in range(random.integers(1, 31))]


def path_of(trie, node):
    """The beginning that a node stands for, read from its ancestors alone."""
    nodes = trie.ancestors[node].nonzero().flatten()
    in_order = nodes[trie.depth[nodes].argsort()]
    assert trie.depth[in_order].tolist() == list(range(len(nodes)))
    return tuple(trie.tokens[in_order].tolist())


@pytest.mark.parametrize("seed", range(50))
def test_the_trie_holds_each_beginning_once_as_a_set_of_beginnings_does(seed):
    answers = answers_at_random(seed)
    trie = Trie.of(answers)
    paths = [path_of(trie, node) for node in range(len(trie))]
    beginnings = {tuple(answer[:end]) for answer in answers for end in range(1, len(answer))}
    assert len(paths) == len(beginnings) and set(paths) == beginnings
    for row, path in enumerate(paths):
        seen = {other for other, allowed in zip(paths, trie.ancestors[row].tolist(), strict=True) if allowed}
        assert seen == {path[:end] for end in range(1, len(path) + 1)}
        assert all(paths.index(before) <= row for before in seen)  # parents first
    for row, answer in enumerate(answers):
        length = int(trie.inside[row].sum())
        assert trie.inside[row].tolist() == [True] * length + [False] * (trie.inside.shape[1] - length)
        assert trie.next[row, :length].tolist() == answer
        befores = [paths[node - 1] if node else () for node in trie.before[row, :length].tolist()]
        assert befores == [tuple(answer[:place]) for place in range(len(answer))]


def test_a_shared_beginning_is_counted_once_and_leaves_not_at_all():
    sentence = list(range(10))
    trie = Trie.of([[*sentence, 20 + name, 99] for name in range(50)])
    assert len(trie) == 10 + 50
    assert trie.ancestors.sum() == sum(range(1, 11)) + 50 * 11


def test_answers_of_one_token_have_no_nodes_and_an_answer_may_begin_another():
    trie = Trie.of([[5], [6]])
    assert len(trie) == 0 and trie.ancestors.shape == (0, 0)
    assert trie.before.tolist() == [[0], [0]] and trie.next.tolist() == [[5], [6]]
    trie = Trie.of([[1, 2], [1, 2, 3], [1]])
    assert trie.tokens.tolist() == [1, 2] and trie.depth.tolist() == [0, 1]
    assert trie.before.tolist() == [[0, 1, 0], [0, 1, 2], [0, 0, 0]]
    assert torch.equal(trie.inside.sum(1), torch.tensor([2, 3, 1]))
