"""The jobs of an evaluation: chosen by fixed rules, so that two runs do the same."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dithead.errors import MediaError
from dithead.train.evaluation.clips import Person
from dithead.train.evaluation.runs import Job

CROSSED_SHIFT = 7
"""Clip i is crossed with the audio of clip i + 7, modulo their number; in a second round i + 8,
..."""
CROSSED_PEOPLE = 3
"""Among several people, each is crossed with the words of the next three by name."""
LOOPED = ("feedback", "precision")


def crossed_pairs(clips: int, count: int) -> list[tuple[int, int]]:
    """A number of fixed pairs (video, audio) of different clips, or as many as there are.

    Raises:
        MediaError: fewer than two clips.
    """
    if clips < 2:
        raise MediaError("crossed evaluation needs at least two usable clips")
    pairs = []
    for i in range(min(count, clips * (clips - 1))):
        shift = 1 + (CROSSED_SHIFT - 1 + i // clips) % (clips - 1)
        pairs.append((i % clips, (i + shift) % clips))
    return pairs


def crossed_people(people: Sequence[Person]) -> list[tuple[Person, Path, Person, Path]]:
    """Each person with the words of the next three, wrapping round: person, their clip, the other,
    whose clip.

    The k-th of the three uses the k-th clip of both, also wrapping round.
    """
    pairs = []
    for i, person in enumerate(people):
        for k in range(min(CROSSED_PEOPLE, len(people) - 1)):
            other = people[(i + 1 + k) % len(people)]
            pairs.append(
                (
                    person,
                    person.clips[k % len(person.clips)],
                    other,
                    other.clips[k % len(other.clips)],
                )
            )
    return pairs


def plan(
    people: Sequence[Person],
    kinds: Sequence[str],
    *,
    pairs: int,
    clips: int | None = None,
    looped_clips: int = 1,
    align: Path | None = None,
) -> list[Job]:
    """The jobs for the people's usable clips, all of one clip after the other.

    Args:
        pairs: number of pairs for ``crossed`` if there is one person. clips: maximum number for
            each person; for ``crossed`` it limits the pairs. looped_clips: the same for
            ``feedback`` and ``precision``. align: folder of GRID alignments.

    Raises:
        MediaError: an alignment is missing, or there is nothing to cross.
    """
    jobs = []
    for kind in kinds:
        if kind == "crossed":
            if len(people) > 1:
                chosen = crossed_people(people)
            else:
                known = people[0].clips
                count = min(pairs, clips or pairs)
                chosen = [
                    (people[0], known[i], people[0], known[j])
                    for i, j in crossed_pairs(len(known), count)
                ]
        else:
            limit = looped_clips if kind in LOOPED else clips
            chosen = [
                (person, path, person, path) for person in people for path in person.clips[:limit]
            ]
        for person, video, voice, audio in chosen:
            words = align / f"{video.stem}.align" if align else None
            if words is not None and not words.is_file():
                raise MediaError(f"{words} does not exist: give --align the alignments' folder")
            jobs.append(Job(kind, person.name, video, audio, words, voice.name))
    return sorted(jobs, key=lambda job: str(job.video))
