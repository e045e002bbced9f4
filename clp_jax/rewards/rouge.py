"""ROUGE-Lsum as a host reward, over a pool of processes.

A worker imports this module and rouge_score, neither JAX nor TensorFlow: keep it so.
"""

import functools
import math
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from clp_jax.reporting.errors import unknown_name

_MEASURES = ("precision", "recall", "fmeasure")
_MAX_DEFAULT_WORKERS = 8

_Scorer = Callable[[str, str], float]


class RougeLsum:
    """ROUGE-Lsum (Lin, 2004) of a completion against a reference, by rouge_score.

    rouge_score takes each *line* for a sentence: it splits on newlines and on nothing else, so
    between two texts without newlines Lsum is ROUGE-L. Put newlines between the sentences of both
    texts to score them sentence by sentence. An empty text scores 0.

    The pool is made at the first call, and ends with the program, however that ends. As with any
    process started by `multiprocessing`'s "spawn", a worker first imports the main script: one
    that trains at import time, without `if __name__ == "__main__":`, cannot use a pool.

    Attributes:
      range: (19, 29) on the scale of 0–100, mapped to (0, 1) (paper, App. B).
      columns: the one column needed, that of the references.
    """

    range = (19.0, 29.0)

    def __init__(
        self,
        workers: int | None = None,
        use_stemmer: bool = True,
        measure: str = "fmeasure",
        column: str = "summary",
    ):
        """Starts nothing yet.

        Args:
          workers: number of processes; 0 scores in the calling thread. Default: one less than
            the CPUs, at least 1, at most 8.
          use_stemmer: whether Porter's stemmer is applied to words of more than 3 letters.
          measure: precision, recall or fmeasure.
          column: the data field that holds the references.

        Raises:
          ValueError: a negative or fractional number of workers, or an unknown measure.
        """
        if workers is None:
            workers = min(max(1, (os.cpu_count() or 1) - 1), _MAX_DEFAULT_WORKERS)
        if not isinstance(workers, int) or workers < 0:
            raise ValueError(f"RougeLsum.workers is {workers!r}; expected an integer >= 0")
        if measure not in _MEASURES:
            raise ValueError(unknown_name("measure", measure, _MEASURES, "RougeLsum.measure"))
        self.columns = (column,)
        self._workers = workers
        self._options = (use_stemmer, measure)
        self._lock = threading.Lock()
        self._pool: ProcessPoolExecutor | None = None

    def __call__(
        self, prompts: Sequence[str], completions: Sequence[str], **columns: Sequence[Any]
    ) -> list[float]:
        """ROUGE-Lsum of each completion against its reference, in order.

        Args:
          prompts: not used.
          completions: B strings.
          **columns: must hold the reference column, B strings.

        Returns:
          B scores, each in [0, 100].

        Raises:
          ValueError: the reference column is missing or of another length.
          TypeError: a completion or a reference is not a string.
          RuntimeError: the workers died twice.
        """
        column = self.columns[0]
        if column not in columns:
            raise ValueError(unknown_name("column", column, columns, "RougeLsum.column"))
        references = columns[column]
        if len(references) != len(completions):
            raise ValueError(
                f"column {column!r}: {len(references)} values for {len(completions)} completions"
            )
        for what, texts in (("completion", completions), (f"column {column!r}, row", references)):
            for i, text in enumerate(texts):
                if not isinstance(text, str):
                    raise TypeError(f"{what} {i} is {text!r}; ROUGE compares strings")
        if not completions:
            return []
        if self._workers == 0:
            return list(map(_make_scorer(*self._options), references, completions))
        try:
            return self._score_in_pool(references, completions)
        except BrokenProcessPool:  # a worker was killed (for memory, or with its process group)
            self.close()
        try:
            return self._score_in_pool(references, completions)
        except BrokenProcessPool as error:
            self.close()
            raise RuntimeError(
                "the ROUGE worker processes died, and again after a restart. Either they were "
                'killed, or the main script lacks `if __name__ == "__main__":`. '
                "RougeLsum(workers=0) scores without them."
            ) from error

    def _score_in_pool(self, references: Sequence[str], completions: Sequence[str]) -> list[float]:
        with self._lock:
            if self._pool is None:
                self._pool = ProcessPoolExecutor(
                    self._workers,
                    # Not fork: JAX's threads may hold locks that the copy would never see freed.
                    mp_context=multiprocessing.get_context("spawn"),
                    initializer=_start_worker,
                    initargs=self._options,
                )
            pool = self._pool
        chunk = math.ceil(len(completions) / self._workers)
        score = functools.partial(_score, self._options)
        return list(pool.map(score, references, completions, chunksize=chunk))

    def close(self) -> None:
        """Ends the workers. A later call starts new ones."""
        with self._lock:
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown(wait=True, cancel_futures=True)

    def __getstate__(self) -> dict[str, Any]:
        """Everything but the pool and its lock."""
        return {k: v for k, v in vars(self).items() if k not in ("_pool", "_lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _pool=None, _lock=threading.Lock())


class _Tokenizer:
    """rouge_score's default tokens. Stems are cached: stemming is most of the work."""

    def __init__(self, use_stemmer: bool):
        from nltk.stem import porter
        from rouge_score import tokenize

        self._tokenize = tokenize.tokenize
        self._stemmer = self if use_stemmer else None
        self.stem = functools.lru_cache(maxsize=1 << 16)(porter.PorterStemmer().stem)

    def tokenize(self, text: str) -> list[str]:
        return self._tokenize(text, self._stemmer)


@functools.cache
def _make_scorer(use_stemmer: bool, measure: str) -> _Scorer:
    """(reference, completion) -> score in [0, 100]; one per process and set of options."""
    from rouge_score import rouge_scorer

    scorer = rouge_scorer.RougeScorer(["rougeLsum"], tokenizer=_Tokenizer(use_stemmer))

    def score(reference: str, completion: str) -> float:
        return 100.0 * getattr(scorer.score(reference, completion)["rougeLsum"], measure)

    return score


def _start_worker(use_stemmer: bool, measure: str) -> None:
    """Prepares a worker process."""
    # Ctrl-C reaches the whole process group; the parent decides what becomes of the workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # A worker would otherwise wait for ever for work if the parent were killed with -9.
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    _make_scorer(use_stemmer, measure)  # is kept, for `_score`


def _exit_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)


def _score(options: tuple[bool, str], reference: str, completion: str) -> float:
    return _make_scorer(*options)(reference, completion)
