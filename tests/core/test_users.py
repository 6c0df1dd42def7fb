"""Whose use of a GPU it is, in words."""

from smartsched.core.users import job_of, process_words, users_words
from tests.builders import a_process


def test_people_are_named_with_what_they_use_together_the_most_first():
    processes = [
        a_process(1, gib=1, user="bob"),
        a_process(2, gib=3, user="alice"),
        a_process(3, gib=4, user="alice"),
    ]

    assert users_words(processes) == "alice 7 GiB, bob 1 GiB"


def test_jobs_of_our_own_runs_are_told_apart():
    processes = [
        a_process(1, gib=1, user="me", run_tag="night.4f2a/3/1"),
        a_process(2, gib=2, user="me", run_tag="night.4f2a/4/2"),
        a_process(3, gib=3, user="me"),
    ]

    assert users_words(processes) == "me 3 GiB, job 4 of run night 2 GiB, job 3 of run night 1 GiB"
    assert job_of(processes[2]) is None
    assert process_words(processes[0]).endswith("(pid 1, job 3 of run night)")


def test_who_cannot_be_known_is_a_pid():
    assert users_words([a_process(7, gib=None, user=None, command=None)]) == "pid 7"


def test_a_name_of_a_run_cannot_write_to_the_terminal():
    process = a_process(1, run_tag="\x1b]0;evil\x07.4f2a/3/1")

    assert "\x1b" not in process_words(process) + users_words([process])
