import dataclasses
import hashlib
import io
import math
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from markdown_it import MarkdownIt
from PIL import Image as Raster

from initopt.comparison.analysis.summary import summarize
from initopt.comparison.report import figures
from initopt.comparison.report import report as report_module
from initopt.comparison.report.axes import styles
from initopt.comparison.report.content import Figure, Image, Strong, Table
from initopt.comparison.report.findings import caveats, findings
from initopt.comparison.report.report import to_document, to_html, to_markdown, write_report
from initopt.diagnosis import Finding
from tests.synthetic_comparison import STARTS, comparison, diverged, failed, ordinary, run, ugly, without_accuracy


def made(names=("default", "nio"), seeds=5, network="plain", change=lambda record: record, **more):
    runs = [change(run(network, name, seed)) for name in names for seed in range(seeds)]
    return comparison([record for record in runs if record is not None], **more)


def with_finals(**finals):
    """A comparison whose runs end in these accuracies, a list over seeds for every initialization."""

    def ending(record, value):
        last = dataclasses.replace(record.curve[-1], accuracy=value)
        return dataclasses.replace(record, curve=(*record.curve[:-1], last))

    return comparison(
        [ending(run("plain", name, seed), value) for name, values in finals.items() for seed, value in enumerate(values)]
    )


def entry_of(summary, name, network=0):
    return next(entry for entry in summary.networks[network].entries if entry.name == name)


def tables(document):
    return {(section.title, b.title): b for section in document.sections for b in section.blocks if isinstance(b, Table)}


def images(document):
    blocks = [block for section in document.sections for block in section.blocks]
    return [image for block in blocks if isinstance(block, Figure) for image in block.images]


def row(table, name):
    return dict(zip(table.columns, next(cells for cells in table.rows if cells[0] == name), strict=True))


def blank(figure, name, alt):
    return Image(name, alt, b"", *(round(96 * side) for side in figure.get_size_inches()))


@pytest.fixture
def drawn():
    """Makes pictures real in a test, which takes seconds; the others see what is said of them."""


@pytest.fixture(autouse=True)
def not_drawn(request, monkeypatch):
    if "drawn" not in request.fixturenames:
        monkeypatch.setattr(figures, "to_image", blank)


@pytest.fixture(scope="module")
def ugly_document():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "to_image", blank)
        return to_document(summarize(ugly()))


class TestSummary:
    def test_differences_are_paired(self):
        summary = summarize(with_finals(default=[0.8, 0.9, 0.7], nio=[0.82, 0.93, 0.71]))
        found = entry_of(summary, "nio").final_difference
        assert found.differences == pytest.approx({0: 0.02, 1: 0.03, 2: 0.01})
        assert entry_of(summary, "default").final_difference is None

    def test_pairs_where_both_exist(self):
        def change(record):
            if (record.initialization, record.seed) == ("default", 1):
                return failed(record)
            return None if (record.initialization, record.seed) == ("nio", 3) else record

        summary = summarize(made(change=change))
        entry = entry_of(summary, "nio")
        assert list(entry.final_difference.differences) == [0, 2, 4]
        assert entry.missing == (3,)
        assert list(entry_of(summary, "default").final) == [0, 2, 3, 4]

    def test_a_diverged_run_stays_in_the_mean(self):
        bad = made(change=lambda r: diverged(r, 3) if (r.initialization, r.seed) == ("nio", 0) else r)
        summary = summarize(bad)
        entry = entry_of(summary, "nio")
        assert entry.final[0] == summary.networks[0].outcome.untrained < 0.13
        assert len(entry.final) == 5

    def test_first_initialization_is_the_reference_without_a_default(self):
        assert summarize(made(names=("xavier_normal", "nio"))).reference == "xavier_normal"

    def test_verdicts(self):
        noise = [0.0, 0.001, -0.001, 0.0005, -0.0005]
        summary = summarize(
            with_finals(
                default=[0.9 for _ in noise],
                better=[0.95 + n for n in noise],
                worse=[0.8 + n for n in noise],
                level=[0.9 + 10 * n for n in noise],
            )
        )
        assert [entry_of(summary, name).verdict for name in ("better", "worse", "level", "default")] == [1, -1, 0, 0]

    def test_corrected_over_all_networks(self):
        alone = summarize(made(names=("default", "nio")))
        together = summarize(ordinary(names=("default", "nio", "lsuv")))
        assert together.comparisons == 6
        assert entry_of(alone, "nio").final_difference.p_holm == entry_of(alone, "nio").final_difference.p
        found = [entry.final_difference for network in together.networks for entry in network.others]
        least = min(found, key=lambda paired: paired.p)
        assert least.p_holm == pytest.approx(6 * least.p)

    def test_targets_are_shares_of_what_the_default_has(self):
        network = summarize(with_finals(default=[0.8, 0.6], nio=[0.9, 0.9])).networks[0]
        assert [target.value for target in network.targets] == pytest.approx([0.35, 0.525, 0.63, 0.665])
        assert network.targets_of == "default"

    def test_targets_are_of_the_best_where_the_default_learns_nothing(self):
        network = summarize(with_finals(default=[0.1, 0.1], nio=[0.9, 0.9])).networks[0]
        assert network.targets_of == "nio"

    def test_targets_of_losses_are_shares_of_the_way_down(self):
        network = summarize(made(change=without_accuracy)).networks[0]
        untrained, final = (
            network.outcome.untrained,
            sum(entry_of(summarize(made(change=without_accuracy)), "default").final.values()),
        )
        assert network.targets[0].value == pytest.approx((untrained + final / 5) / 2)

    def test_two_final_runs_of_one_seed_are_refused(self):
        runs = [run(), run(lr=0.1)]
        with pytest.raises(ValueError, match="two final runs of 'plain' from 'default' with seed 0, at lr=0.05 and lr=0.1"):
            summarize(comparison(runs))

    def test_learning_rate_at_the_edge(self):
        selection = [run("plain", "nio", 100, lr=lr, purpose="selection") for lr in (0.05, 0.1)]
        summary = summarize(comparison([run("plain", "nio", 0)], selection))
        assert entry_of(summary, "nio").lr_at_edge


class TestWords:
    def test_better_worse_and_level(self):
        noise = [0.0, 0.001, -0.001, 0.0005, -0.0005]
        summary = summarize(
            with_finals(
                default=[0.9 for _ in noise],
                better=[0.95 + n for n in noise],
                worse=[0.8 + n for n in noise],
                level=[0.9 + 10 * n for n in noise],
            )
        )
        (text,) = findings(summary)
        assert "better (+5.0 [+4.9, +5.1] points) ends better than default (90.0 %)." in text
        assert "worse (-10.0 [-10.1, -9.9] points) ends worse than default (90.0 %)." in text
        assert "level cannot be told from default by these 5 seeds." in text

    def test_of_losses_less_is_better(self):
        (text,) = findings(summarize(made(names=("default", "xavier_normal", "trunc_normal"), change=without_accuracy)))
        assert re.search(r"trunc_normal \(\+[0-9.]+ \[.*\]\) ends worse than default", text)
        assert re.search(r"xavier_normal \(-[0-9.]+ \[.*\]\) ends better than default", text)

    def test_a_head_start_that_is_gone(self):
        (text,) = findings(summarize(made(network="batch norm", names=("default", "orthogonal"))))
        assert "orthogonal cannot be told from default" in text
        assert "A head start that does not last: after epoch 1, orthogonal was clearly better" in text

    def test_a_slow_start_that_is_gone(self):
        def slow(record):
            if record.initialization == "default":
                return record
            points = [
                replace(p, accuracy=p.accuracy - 0.15) if p.epoch == 1 and p.subset == "test" else p for p in record.curve
            ]
            return replace(record, curve=tuple(points))

        (text,) = findings(summarize(made(network="batch norm", names=("default", "orthogonal"), change=slow)))
        assert "orthogonal cannot be told from default" in text
        assert "A slow start that does not last: after epoch 1, orthogonal was clearly worse" in text
        assert "head start" not in text

    def test_one_seed_is_no_evidence(self):
        summary = summarize(made(seeds=1))
        assert "one seed, which is an example and no evidence" in findings(summary)[0]
        assert any("no interval and no test" in sentence for sentence in caveats(summary))

    def test_one_initialization(self):
        summary = summarize(made(names=("nio",)))
        assert "there is nothing to compare it to" in findings(summary)[0]

    def test_nothing_in_common(self):
        runs = [run(seed=0), run(seed=1), run("plain", "nio", 2)]
        assert "no initialization shares a finished seed with default" in findings(summarize(comparison(runs)))[0]

    def test_no_run_at_all(self):
        empty = comparison([], networks=["plain"], initializations=["default", "nio"], seeds=[0, 1])
        assert "no run has come to a result yet" in findings(summarize(empty))[0]
        assert any("all seeds of default and nio" in sentence for sentence in caveats(summarize(empty)))

    def test_diverged_failed_and_missing_runs_are_named(self, ugly_document):
        summary = summarize(ugly())
        assert "Runs that diverged: 1 of 5 from default and 5 of 5 from trunc_normal" in findings(summary)[0]
        assert "Since default is among them" in findings(summary)[0]
        lost = next(sentence for sentence in caveats(summary) if sentence.startswith("Runs that failed"))
        assert "1 of nio on a|network_with" in lost
        assert "seed 3 of xavier_normal and seed 1 of gradinit" in lost
        assert "on single seed, seeds 1, 2, 3, 4 of default, xavier_normal and nio" in lost

    def test_learning_rates_that_were_not_chosen(self):
        assert any("was not chosen for each initialization" in sentence for sentence in caveats(summarize(made())))
        chosen = summarize(ordinary(networks=("plain",), names=("default", "nio"), seeds=3))
        assert not any("learning rate" in sentence for sentence in caveats(chosen))

    def test_learning_rates_at_the_edge(self):
        selection = [run("plain", "nio", 100, lr=lr, purpose="selection") for lr in (0.05, 0.1)]
        runs = [run("plain", name, seed) for name in ("default", "nio") for seed in range(3)]
        assert any(
            "may lie beyond, for nio on plain" in sentence for sentence in caveats(summarize(comparison(runs, selection)))
        )

    def test_other_versions(self):
        assert any("same versions of torch" in sentence for sentence in caveats(summarize(ugly())))
        assert not any("versions" in sentence for sentence in caveats(summarize(made())))

    def test_few_pairs(self):
        assert any("rest on 3 pairs only" in sentence for sentence in caveats(summarize(made(seeds=3))))
        assert not any("pairs only" in sentence for sentence in caveats(summarize(made())))


class TestDocument:
    def test_results(self):
        document = to_document(summarize(with_finals(default=[0.8, 0.9], nio=[0.9, 1.0])))
        found = row(tables(document)["plain", "Test accuracy"], "nio")
        assert found["in the end"] == "95.0 ± 7.1 %"
        assert found["range"] == "90.0 % to 100.0 %"
        assert found["runs"] == "2 of 2"
        assert found["learning rate"] == "0.05"

    def test_shares_of_diverged_and_failed(self, ugly_document):
        table = next(table for (_, title), table in tables(ugly_document).items() if title == "Test accuracy")
        assert row(table, "trunc_normal")["diverged"] == "5 of 5"
        assert row(table, "nio")["failed"] == "1 of 5"
        assert row(table, "gradinit")["runs"] == "3 of 5"

    def test_steps_that_were_never_reached_are_censored(self):
        accuracies = {"default": [0.9, 0.9, 0.9], "nio": [0.9, 0.3, 0.3]}
        document = to_document(summarize(with_finals(**accuracies)))
        table = tables(document)["plain", "Training steps to a given test accuracy"]
        assert table.columns[1] == "50 % of it: 45.0 %"
        # nio's curves pass 45 % long before their last point, which alone was lowered.
        assert row(table, "nio")["50 % of it: 45.0 %"] == "17"
        slow = to_document(summarize(made(names=("default", "trunc_normal"))))
        table = tables(slow)["plain", "Training steps to a given test accuracy"]
        assert row(table, "trunc_normal")[table.columns[3]] == "- (0 of 5)"

    def test_costs(self):
        document = to_document(summarize(made()))
        cost = row(tables(document)["plain", "Cost of the initialization"], "nio")
        assert 1.4 < float(cost["seconds"].split()[0]) < 1.8
        assert 700 < float(cost["in training steps"].split()[0]) < 900
        assert cost["of the training"].endswith(" %")

    def test_chosen_learning_rates_stand_out(self):
        document = to_document(summarize(ordinary(networks=("plain",), names=("default", "nio"), seeds=2)))
        (found,) = (t for (_, title), t in tables(document).items() if title == "How the learning rates were chosen")
        cells = row(found, "nio")
        assert isinstance(cells["0.05"], Strong)
        assert not isinstance(cells["0.02"], Strong)

    def test_diverged_runs_in_the_selection(self, ugly_document):
        table = tables(ugly_document)["language model", "How the learning rates were chosen"]
        assert row(table, "nio")["0.1"].endswith("(1 diverged)")

    def test_gradients(self):
        found = row(tables(to_document(summarize(made())))["plain", "Gradients before training"], "nio")
        assert 0.4 < float(found["GradCosine, trained from"].split()[0]) < 0.6

    def test_nothing_measured(self):
        document = to_document(summarize(made(change=lambda r: dataclasses.replace(r, before=None, after=None))))
        assert ("plain", "Gradients before training") not in tables(document)
        assert not any("grad" in image.name for image in images(document))

    def test_layers(self):
        def found(record):
            if record.initialization != "default":
                return dataclasses.replace(record, findings=())
            vanishing = Finding("A204", "error", ("0", "2"), "the signal shrinks by 0.41 a layer", "other weights")
            dead = Finding("A201", "warning", ("1",), "half of its units are dead", "other biases")
            return dataclasses.replace(record, findings=(vanishing, dead) if record.seed == 0 else (vanishing,))

        table = tables(to_document(summarize(made(change=found))))["plain", "Layers before training"]
        assert row(table, "default") == {
            "initialization": "default",
            "what is wrong with its start": "A204 vanishing signal; A201 dead ReLUs (1 of 5)",
            "for example": "the signal shrinks by 0.41 a layer",
        }
        assert row(table, "nio")["what is wrong with its start"] == "nothing"
        assert ("plain", "Layers before training") not in tables(to_document(summarize(made())))

    def test_recipe_and_versions(self, ugly_document):
        texts = {block.title: block.text for block in ugly_document.sections[-1].blocks if hasattr(block, "title")}
        assert "schedule: cosine" in texts["The recipe"]
        assert "torch: 2.12.0" in texts["Versions of 1 run"]

    def test_errors_are_listed(self, ugly_document):
        titles = [block.title for section in ugly_document.sections for block in section.blocks if hasattr(block, "title")]
        assert "nio: 1 run failed (seed 4: RuntimeError: out of cheese)" in titles

    def test_every_figure_says_what_it_shows(self, ugly_document):
        assert all(len(image.alt) > 40 for image in images(ugly_document))
        figures = [b for section in ugly_document.sections for b in section.blocks if isinstance(b, Figure)]
        assert len(figures) > 6
        assert all("seed" in figure.caption for figure in figures)

    def test_captions_say_what_bands_are(self):
        few = to_document(summarize(made(names=("default", "nio"), seeds=3)))
        captions = [b.caption for s in few.sections for b in s.blocks if isinstance(b, Figure)]
        assert any("mean of 3 seeds; bands: 95 % bootstrap interval" in caption for caption in captions)
        assert any("fewer than 5 seeds: their range" in caption for caption in captions)
        one = to_document(summarize(made(seeds=1)))
        captions = [b.caption for s in one.sections for b in s.blocks if isinstance(b, Figure)]
        assert not any("interval of the mean" in caption for caption in captions)

    def test_small_charts_for_many_initializations(self):
        few = to_document(summarize(made(names=tuple(STARTS)[:4], seeds=2)))
        many = to_document(summarize(made(names=tuple(STARTS), seeds=2)))
        assert sum("-curves-" in image.name for image in images(few)) == 0
        assert sum("-curves-" in image.name for image in images(many)) == len(STARTS) - 1

    def test_what_is_left_out_of_a_figure_is_said(self):
        def captions(found):
            sections = to_document(summarize(found)).sections
            return " ".join(b.caption for section in sections for b in section.blocks if isinstance(b, Figure))

        level = made(names=("default", "xavier_normal", "nio"), seeds=3)
        assert "cut off" not in captions(level)
        assert "arrow" not in captions(level)
        exploding = made(seeds=3, change=lambda r: diverged(r, 5, peak=1e9) if r.initialization == "nio" else r)
        assert "Losses of more than 3 times those at the start are cut off" in captions(exploding)
        far = made(names=("default", "xavier_normal", "trunc_normal", "nio"), seeds=3)
        assert "An arrow at the edge" in captions(far)

    def test_pictures_are_pictures(self, drawn):
        for image in images(to_document(summarize(made(seeds=2)))):
            with Raster.open(io.BytesIO(image.png)) as found:
                assert found.size == (2 * image.width, 2 * image.height)
                assert len(found.convert("RGB").getcolors(10_000)) > 5

    def test_files_have_names_of_their_own(self, ugly_document):
        names = [image.name for image in images(ugly_document)]
        assert len(names) == len(set(names))
        assert all(re.fullmatch(r"[a-z0-9-]+", name) for name in names)

    @pytest.mark.heavy
    @pytest.mark.parametrize(
        "change",
        [
            lambda r: diverged(r, 0),
            failed,
            lambda r: without_accuracy(diverged(r, 2, peak=math.inf)),
            lambda r: dataclasses.replace(r, curve=()),
            lambda r: dataclasses.replace(r, curve=tuple(p for p in r.curve if p.subset == "test")),
            lambda r: dataclasses.replace(r, curve=tuple(p for p in r.curve if p.subset == "train")),
            lambda r: dataclasses.replace(r, initialization_steps=None, step_seconds=None),
            lambda r: dataclasses.replace(
                r, curve=tuple(dataclasses.replace(p, loss=1e30 * p.loss, accuracy=None) for p in r.curve)
            ),
            lambda r: dataclasses.replace(r, curve=tuple(dataclasses.replace(p, accuracy=0.5, loss=0.0) for p in r.curve)),
            lambda r: dataclasses.replace(
                r, curve=tuple(dataclasses.replace(p, loss=-1.0, accuracy=None) for p in r.curve)
            ),
            lambda r: dataclasses.replace(
                r, curve=tuple(dataclasses.replace(p, loss=math.nan, accuracy=None) for p in r.curve)
            ),
        ],
        ids=[
            "diverged",
            "failed",
            "infinite",
            "bare",
            "test only",
            "train only",
            "no steps",
            "huge",
            "equal",
            "negative",
            "nan",
        ],
    )
    @pytest.mark.parametrize("all_of_them", [True, False])
    def test_odd_runs(self, drawn, change, all_of_them):
        found = made(seeds=2, change=lambda r: change(r) if all_of_them or r.initialization == "nio" else r)
        document = to_document(summarize(found))
        assert "nan" not in re.sub(
            "NonFinite|nan is|is nan", "", to_markdown(document, "figures").split("## How it was done")[0]
        )

    def test_many_initializations_look_different(self):
        found = styles([str(number) for number in range(25)], "0")
        assert len({(s.colour, str(s.line), s.marker, s.filled) for s in found.values()}) == 25
        twelve = list(styles([str(number) for number in range(13)], "0").values())
        assert len({(s.colour, str(s.line)) for s in twelve}) == 13


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))


class TestHtml:
    def test_needs_nothing_beside_it(self, ugly_document):
        parser = Tags()
        parser.feed(to_html(ugly_document))
        links = [
            attributes.get(name) for _, attributes in parser.found for name in ("src", "href", "srcset", "data", "action")
        ]
        assert all(link.startswith(("data:", "#")) for link in links if link is not None)
        assert not any(tag in ("script", "iframe", "object", "embed") for tag, _ in parser.found)
        policy = [a["content"] for tag, a in parser.found if a.get("http-equiv") == "Content-Security-Policy"]
        assert policy[0].startswith("default-src 'none'")

    def test_every_picture_is_in_it(self, ugly_document):
        parser = Tags()
        parser.feed(to_html(ugly_document))
        found = [attributes for tag, attributes in parser.found if tag == "img"]
        assert [attributes["alt"] for attributes in found] == [image.alt for image in images(ugly_document)]

    def test_names_are_no_markup(self, ugly_document):
        assert "<b>its</b>" not in to_html(ugly_document)
        assert "&lt;b&gt;its&lt;/b&gt;" in to_html(ugly_document)


class TestMarkdown:
    def test_tables_are_whole(self, ugly_document):
        tokens = MarkdownIt("commonmark").enable("table").parse(to_markdown(ugly_document, "figures"))
        widths, heads = [], 0
        for token in tokens:
            if token.type == "tr_open":
                widths.append(0)
            elif token.type in ("td_open", "th_open"):
                widths[-1] += 1
            heads += token.type == "table_open"
        expected = tables(ugly_document)
        assert heads == len(expected)
        assert widths == [len(t.columns) for t in expected.values() for _ in range(1 + len(t.rows))]

    def test_names_are_no_markup(self, ugly_document):
        html = MarkdownIt("commonmark").enable("table").render(to_markdown(ugly_document, "figures"))
        assert "<b>its</b>" not in html
        assert "a|network_with&lt;a&gt;very-long$name*that goes on" in html

    def test_pictures_are_beside_it(self, ugly_document):
        text = to_markdown(ugly_document, "figures")
        assert all(f'src="figures/{image.name}.png"' in text for image in images(ugly_document))


class TestWriteReport:
    @pytest.fixture(autouse=True)
    def stored(self, monkeypatch):
        monkeypatch.setattr(report_module, "load_stored", lambda folder: made(seeds=2))

    def test_files(self, tmp_path):
        page = write_report(tmp_path)
        assert page == tmp_path / "report" / "report.html"
        assert {path.name for path in page.parent.iterdir()} == {"report.html", "report.md", "figures", ".initopt-report"}
        pictures = re.findall(r'src="(figures/[^"]+)"', (page.parent / "report.md").read_text())
        assert len(pictures) == 6
        assert all((page.parent / picture).is_file() for picture in pictures)

    @pytest.mark.heavy
    def test_the_same_each_time(self, drawn, tmp_path):
        def digests():
            files = sorted(path for path in write_report(tmp_path).parent.rglob("*") if path.is_file())
            return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}

        assert digests() == digests()

    def test_an_earlier_report_is_replaced(self, tmp_path):
        write_report(tmp_path).write_text("old")
        assert write_report(tmp_path).read_text().startswith("<!DOCTYPE html>")

    @pytest.mark.parametrize("name", ["notes.txt", "figures/mine.png"])
    def test_files_of_others_are_not_lost(self, tmp_path, name):
        mine = write_report(tmp_path).parent / name
        mine.write_text("mine")
        with pytest.raises(FileExistsError, match=mine.name):
            write_report(tmp_path)
        assert mine.read_text() == "mine"

    def test_a_folder_of_others_is_refused(self, tmp_path):
        (tmp_path / "report").mkdir()
        (tmp_path / "report" / "thesis.tex").write_text("mine")
        with pytest.raises(FileExistsError, match="was not written by initopt"):
            write_report(tmp_path)

    def test_what_is_not_installed_is_named(self, tmp_path, monkeypatch):
        monkeypatch.setattr("initopt._support.checks.find_spec", lambda name: None if name == "jinja2" else object())
        with pytest.raises(ImportError, match=r"a report needs jinja2: pip install 'initopt\[compare\]'"):
            write_report(tmp_path)

    def test_all_or_nothing(self, tmp_path, monkeypatch):
        before = write_report(tmp_path).read_bytes()

        def full(document, pictures):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(report_module, "to_markdown", full)
        with pytest.raises(OSError, match="No space left"):
            write_report(tmp_path)
        assert (tmp_path / "report" / "report.html").read_bytes() == before
        assert [path.name for path in tmp_path.iterdir()] == ["report"]
