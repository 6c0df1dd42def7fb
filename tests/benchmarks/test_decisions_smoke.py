"""That the decision benchmark runs, and that its accounts add up: its numbers are only as good."""

import json
from pathlib import Path
from random import Random

import pytest

from tests.benchmarks.decisions.__main__ import main
from tests.benchmarks.decisions.baselines import BASELINES
from tests.benchmarks.decisions.fleet import Fleet
from tests.benchmarks.decisions.jobs import make_jobs
from tests.benchmarks.decisions.measure import Entrant, game_of, oracle_score, reference
from tests.benchmarks.decisions.phases import GIB, Phase
from tests.benchmarks.decisions.play import Game, Setting, Smartsched, new_game
from tests.benchmarks.decisions.scenarios import SCENARIOS, TINY
from tests.benchmarks.decisions.world import START, Fate, Physics, Process, World, make_cards

POLITE = Entrant("polite", Smartsched(("--polite", "--jobs-per-gpu", "auto")))
PLAIN = Entrant("plain", Smartsched(()))
LOOSE = Entrant("loose poll", BASELINES["loose poll 50 %"])


@pytest.mark.parametrize("looking", [False, True])
@pytest.mark.parametrize("entrant", [POLITE, LOOSE], ids=lambda entrant: entrant.name)
def test_every_job_is_done_once_and_every_gpu_second_is_accounted_for(
    entrant: Entrant, looking: bool
):
    found, game = game_of(Setting(TINY, 2, looking), entrant)

    assert found.unfinished == found.done_twice == 0
    assert found.makespan == max(job.done_at[0] for job in game.jobs) - START
    ends = [attempt.end for attempt in game.fleet.attempts]
    assert ends.count("done") == len(game.jobs)
    assert found.launches == len(ends) == len(game.jobs) + found.own_ooms + found.stopped
    useful = sum(a.gpu_seconds for a in game.fleet.attempts if a.end == "done")
    assert found.gpu_seconds == pytest.approx(useful + found.wasted_gpu_seconds)
    assert not any(process.is_ours for card in game.world.cards for process in card.processes)


def test_what_the_cards_hold_is_what_their_processes_hold():
    _, game = game_of(Setting(SCENARIOS["busy_lab"], 1, looking=True), LOOSE)

    for card in game.world.cards:
        assert card.used_bytes == sum(p.phase.memory_bytes for p in card.processes)
        assert card.load == sum(p.phase.utilization for p in card.processes)
        assert 0 <= card.used_bytes <= card.memory_bytes


def test_the_same_arguments_give_the_same_game():
    setting = Setting(TINY, 3, looking=True)

    first, second = (game_of(setting, POLITE)[0] for _ in range(2))
    first.cpu_seconds = second.cpu_seconds = 0.0

    assert first == second


def test_colleagues_do_the_same_whoever_watches_as_long_as_we_do_nothing():
    class Idle:
        def play(self, game: Game, deadline: float) -> None:  # noqa: ARG002
            game.world.pass_until(START + 20_000)

    found, _ = game_of(Setting(SCENARIOS["busy_lab"], 1, looking=True), Entrant("idle", Idle()))

    assert found.compared > 20
    assert found.ooms == found.ooms_alone
    assert found.delay_seconds == pytest.approx(0.0)


@pytest.mark.parametrize("looking", [False, True])
def test_the_oracle_does_all_jobs_and_no_harm(looking: bool):
    found = oracle_score(Setting(SCENARIOS["busy_lab"], 2, looking))

    assert found.unfinished == found.own_ooms == found.stopped == 0
    assert found.visits > 10
    assert found.ooms == found.ooms_alone
    assert found.lost_to_us_seconds == 0
    assert found.delay_seconds == pytest.approx(0.0)


def test_one_job_after_the_other_is_no_faster_than_the_lower_bound():
    setting = Setting(TINY, 1, looking=False)

    bound = reference(setting).lower_bound

    longest = max(job.solo_seconds for job in new_game(setting).jobs)
    assert longest <= bound <= oracle_score(setting).makespan * 3


def test_processes_on_one_card_slow_each_other_down():
    world = world_of_one_card()
    ended: dict[int, float] = {}

    def note(process: Process, fate: Fate) -> None:
        ended[process.pid] = world.time

    phases = [Phase(100.0, GIB, 0.75, 0.0)]
    for pid in (1, 2):
        world.start(Process(pid, False, "alice", "train", (world.cards[0],), [*phases], note))
    world.pass_until(1000.0)

    assert ended == {pid: pytest.approx(100 * (1 + 0.04 * 0.75 + 0.6 * 0.5)) for pid in (1, 2)}


def test_what_does_not_fit_kills_its_requester_and_frees_its_memory():
    world = world_of_one_card()
    fates: dict[int, Fate] = {}

    def note(process: Process, fate: Fate) -> None:
        fates[process.pid] = fate

    def process(pid: int, *gib: int) -> Process:
        phases = [Phase(10.0, held * GIB) for held in gib]
        return Process(pid, False, "alice", "train", (world.cards[0],), phases, note)

    world.start(process(1, 6, 6, 6))
    world.start(process(2, 3, 5))
    world.pass_until(15.0)

    assert fates == {2: "oom"}
    assert world.cards[0].used_bytes == 6 * GIB


def test_a_checkpoint_keeps_the_work_and_only_the_start_is_done_again():
    job = make_jobs(TINY, 1, checkpointable=True)[0]
    world = World(make_cards(1, TINY.card_bytes), Physics(), Random(1), START)
    fleet = Fleet(world)
    first = fleet.start(job, [0])
    begun = sum(phase.seconds for phase in job.starting)

    world.pass_until(START + begun + 30.0)
    fleet.checkpoint(first)
    world.pass_until(START + begun + 30.0 + job.saving_seconds)
    second = fleet.start(job, [0])
    world.pass_until(START + 10_000.0)

    assert (first.end, second.end) == ("saved", "done")
    assert first.kept_seconds == pytest.approx(30.0)
    assert first.gpu_seconds - first.kept_seconds == pytest.approx(begun + job.saving_seconds)
    assert second.gpu_seconds == pytest.approx(job.solo_seconds - 30.0)


def test_skipping_what_nobody_would_see_changes_next_to_nothing():
    skipping, complete = (
        game_of(Setting(TINY, 1, looking=False, every_second=every_second), PLAIN)[0]
        for every_second in (False, True)
    )

    assert skipping.makespan == pytest.approx(complete.makespan, rel=0.05)
    assert skipping.ticks < complete.ticks / 2


def test_it_prints_a_table_and_the_gates_and_writes_every_game(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    arguments = ["--scenarios", "tiny", "--seeds", "1,2", "--processes", "1", "--baselines"]
    policies = ["--policy", "polite", "--policy", "slow=--free-for 60s --retries 9"]

    main([*arguments, *policies, "--json", str(tmp_path / "games.json")])

    games = json.loads((tmp_path / "games.json").read_text())["games"]
    players = {"oracle_pack", "polite", "slow", *BASELINES}
    assert {game["policy"] for game in games} == players
    assert len(games) == len(players) * 2 * 2
    printed = capsys.readouterr().out
    assert "makespan / oracle_pack" in printed
    assert all(name in printed for name in players)


def world_of_one_card() -> World:
    return World(make_cards(1, 10 * GIB), Physics(), Random(1), 0.0)
