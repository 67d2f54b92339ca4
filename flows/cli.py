"""The command `dfkd`. Slow modules are imported inside the commands, so `--help` is fast."""

from __future__ import annotations

import errno
import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from dfkd_flows.session.anywhere import Place
    from dfkd_flows.settings.params import Params

__all__ = ["app", "main"]

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    epilog="Example: dfkd run --preset fast && dfkd show",
)


def _text(value: str) -> str:
    """Refuse an empty value, which is usually a variable of the shell that is not set."""
    if not value.strip():
        raise typer.BadParameter("it is empty. Give a value, or leave the option out.")
    return value


def _path(value: str) -> Path:
    return Path(_text(value))


Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change params.yaml first; repeatable. Values are YAML."),
]
NotWritten = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Replace a value of params.yaml for this command; repeatable."),
]
Preset = Annotated[
    str | None,
    typer.Option(help="Set params.yaml to a preset first: default, fast, best, digits.", metavar="NAME", parser=_text),
]
TeacherSource = Annotated[
    str | None,
    typer.Option(
        "--teacher",
        metavar="SOURCE",
        help="torchvision:NAME, timm:NAME, package.module:factory, models:/NAME@ALIAS, a folder or a file: .pt2, "
        "TorchScript, ONNX.",
        parser=_text,
    ),
]
Weights = Annotated[
    str | None,
    typer.Option(
        metavar="FILE", help="The teacher's weights: safetensors, or a state dict in .pt or .pth.", parser=_text
    ),
]
Student = Annotated[
    str | None,
    typer.Option(
        metavar="SOURCE",
        help="Built-in network (lenet5@0.5), torchvision:, timm: or package.module:factory.",
        parser=_text,
    ),
]
TrustPickle = Annotated[
    bool,
    typer.Option("--trust-pickle", help="Unpickle --teacher or --weights, which runs any code in the file."),
]
TrustFactory = Annotated[
    list[str] | None,
    typer.Option(
        "--trust-factory",
        metavar="NAME",
        help="Let a stored model call this factory, package.module:factory, which runs its code; repeatable.",
    ),
]
Names = Annotated[
    list[str] | None,
    typer.Argument(metavar="[NAME]...", help="Students in params.yaml; all if none is named.", show_default=False),
]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks.")]

_BAD_INPUT, _FAILED, _BUSY, _INTERRUPTED = 2, 1, 3, 130


def _show_version(wanted: bool) -> None:
    if wanted:
        from dfkd_core.installing import version_text

        typer.echo(version_text())
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the versions and exit.")
    ] = False,
) -> None:
    """Data-free knowledge distillation: from a trained teacher to a registered student, without its training data."""


def main() -> None:
    """Run the command line, with the code of the project's folder if this holds some."""
    from dfkd_flows.session.own_code import run_own_code
    from dfkd_tasks.processes.lifeline import end_with_callers

    run_own_code()
    end_with_callers()
    app()


@app.command(
    epilog="Examples: dfkd run | dfkd run --preset fast | dfkd run --set synthesis.num_images=2000 --set seed=1 | "
    "dfkd run --teacher torchvision:resnet18 --weights ckpt.pt --student resnet18_quarter"
)
def run(
    names: Names = None,
    teacher: TeacherSource = None,
    weights: Weights = None,
    student: Student = None,
    trust_pickle: TrustPickle = False,
    trust_factory: TrustFactory = None,
    preset: Preset = None,
    assignments: Set = None,
    everything: Annotated[bool, typer.Option("--all", help="Make all students, as without names.")] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Wait until another run in this folder has ended.")] = False,
    yes: Annotated[
        bool, typer.Option("--yes", help="Make a project if there is none, without a question; see dfkd init.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Run everything that has changed, from the teacher to the registered student, and show the table.

    A project can have several students, which can share a teacher. If one fails, the others are made all the same.
    Options are checked and then written into params.yaml. An interrupted run continues when it is started again.
    Outside of a project, --teacher or --student makes one in the current folder first.
    """
    start = _process_start()
    here = Path.cwd()
    named = teacher or weights or student or trust_pickle or trust_factory
    if not (named or names or preset or assignments) and (answer := _known_answer()):
        typer.echo(answer)
        return
    if (teacher or student) and _is_outside(here):
        with _reporting(debug, place="new project"):
            from dfkd_flows.project.offer import make_project_if_agreed
            from dfkd_flows.project.wishes import Wishes

            wishes = Wishes(
                here=here,
                teacher=teacher,
                weights=weights,
                student=student,
                trust_pickle=trust_pickle,
                trusted=tuple(trust_factory or ()),
                preset=preset,
                assignments=tuple(assignments or ()),
            )
            make_project_if_agreed(wishes, yes=yes)
        # The project has them now.
        teacher = weights = student = preset = assignments = None
        trust_pickle = False
    with _reporting(debug, "Finished shards and checkpoints are kept. Continue with: dfkd run"), _only_run(wait=wait):
        from dfkd_flows.run.ahead import fetch_into_clone, look_ahead

        if names and everything:
            raise typer.BadParameter(f"--all makes all students. Leave it out, or {' '.join(names)}.")
        fetch_into_clone()
        outlook = None if preset or assignments or named else look_ahead()
        from dfkd_flows.run.command import run_all
        from dfkd_flows.settings.parsing import load_params
        from dfkd_flows.settings.teacher_source import placed_assignments, source_changes

        changes = source_changes(
            here=here, teacher=teacher, weights=weights, student=student, trust_pickle=trust_pickle
        )
        placed = placed_assignments(changes, load_params(), names or ()) if changes else []
        run_all(
            preset,
            [*placed, *(assignments or [])],
            students=names or (),
            trusted=tuple(trust_factory or ()),
            start=start,
            outlook=outlook,
        )


@app.command(epilog="Example: dfkd publish")
def publish(debug: Debug = False) -> None:
    """Register results in MLflow and copy them to the DVC remote, if a run could not. What is there already stays."""
    with _reporting(debug, "Continue with the same command."), _only_run():
        from dfkd_flows.run.delivery import publish_results

        publish_results()


@app.command(epilog="Examples: dfkd share s3://team/dfkd | dfkd share /mnt/team/dfkd | dfkd share")
def share(
    url: Annotated[
        str | None,
        typer.Argument(
            help="A place that colleagues reach: a folder, s3://, ssh:// and others of DVC; the one that is set if not "
            "given.",
            show_default=False,
            parser=_text,
        ),
    ] = None,
    remote: Annotated[
        str | None,
        typer.Option(help="Name of DVC's remote, to use another one than the default.", metavar="NAME", parser=_text),
    ] = None,
    debug: Debug = False,
) -> None:
    """Copy the results to a place that colleagues reach, and show what to commit and what a colleague types.

    The place becomes DVC's default remote. Nothing is committed, and a remote that is set keeps its address.
    """
    here = Path.cwd()
    with _reporting(debug, "Continue with the same command."), _only_run():
        from dfkd_flows.commands.sharing import share_results

        share_results(url, remote, here)


@app.command(
    epilog="Examples: dfkd init | dfkd init my_project | "
    "dfkd init --teacher my_nets:make_net --weights ckpt.pt --dataset folder:my_images/test"
)
def init(
    folder: Annotated[
        Path | None,
        typer.Argument(help="Empty, new, or in a git repository; the current folder if not given.", parser=_path),
    ] = None,
    teacher: TeacherSource = None,
    weights: Weights = None,
    student: Student = None,
    dataset: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Images to judge the student on: folder:PATH, file:PATH, torchvision:NAME, a built-in name, or none.",
            parser=_text,
        ),
    ] = None,
    trust_pickle: TrustPickle = False,
    trust_factory: TrustFactory = None,
    preset: Preset = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Another value of params.yaml; repeatable."),
    ] = None,
    debug: Debug = False,
) -> None:
    """Make a project of your own: its settings, stages, nightly run and DVC set-up. No existing file is overwritten.

    Teacher, student and data are checked first; if one is refused, nothing is written.
    """
    here = Path.cwd()
    with _reporting(debug, place="new project"):
        from dfkd_flows.project.layout import make_project
        from dfkd_flows.project.wishes import Wishes

        place = Path(os.path.abspath(here / folder if folder else here))
        wishes = Wishes(
            here=here,
            teacher=teacher,
            weights=weights,
            student=student,
            dataset=dataset,
            trust_pickle=trust_pickle,
            trusted=tuple(trust_factory or ()),
            preset=preset,
            assignments=tuple(assignments or ()),
        )
        make_project(place, wishes)
        typer.echo(f"Next: {'' if place == here else f'cd {shlex.quote(str(folder))} && '}dfkd run")


@app.command(epilog="Examples: dfkd tune | dfkd tune --minutes 30 --apply | dfkd tune --preset digits --trials 20")
def tune(
    student: Annotated[
        str | None,
        typer.Option(help="Student in params.yaml; may be left out for the only one.", metavar="NAME", parser=_text),
    ] = None,
    minutes: Annotated[float, typer.Option(help="Time budget of the search in minutes.", metavar="N")] = 10,
    trials: Annotated[
        int | None,
        typer.Option(help="Largest number of settings to try, including those of an interrupted search.", metavar="N"),
    ] = None,
    preset: Preset = None,
    assignments: Set = None,
    apply: Annotated[
        bool, typer.Option("--apply", help="Write the best settings into params.yaml if they are clearly better.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Search for settings whose students are better than those of params.yaml, without real data.

    Each trial makes a small transfer set and a student with the project's teacher. The student is judged on images that
    no model was trained on. An interrupted search continues when it is started again.
    """
    with _reporting(debug, "Finished trials are kept. Continue with the same command."):
        from dfkd_flows.tune.command import tune_all

        tune_all(preset, assignments or [], student=student, minutes=minutes, trials=trials, apply=apply)


@app.command(
    epilog="Examples: dfkd stage synthesize | dfkd stage distill small | "
    "dvc repro distill@small (which calls it if something has changed)"
)
def stage(
    stage: Annotated[str, typer.Argument(help="code, teacher, statistics, synthesize, distill or evaluate.")],
    name: Annotated[
        str | None,
        typer.Argument(
            help="Teacher or, for distill and evaluate, student in params.yaml; may be left out for the only one."
        ),
    ] = None,
    debug: Debug = False,
) -> None:
    """Run one stage with the current params.yaml, even if nothing has changed. DVC calls this."""
    from dfkd_tasks.caching.code_file import CODE_STAGE, write_code_file

    if stage == CODE_STAGE:
        with _reporting(debug):
            write_code_file()
        return
    from dfkd_flows.session.starter import run_by_starter

    if (code := run_by_starter()) is not None:
        raise typer.Exit(code)
    with _reporting(debug, "Finished shards and checkpoints are kept. Continue with the same command."), _only_run():
        from dfkd_flows.settings.parsing import load_params
        from dfkd_flows.stages.command import run_stage

        run_stage(stage, name, load_params())


@app.command(
    epilog="Examples: dfkd synthesize --teacher default --out /tmp/set | "
    "dfkd synthesize --teacher my_teacher --out my_set --set synthesis.method=dirichlet"
)
def synthesize(
    teacher: Annotated[
        Path,
        typer.Option(
            help="Teacher in params.yaml, or a folder with model.safetensors and config.json.",
            metavar="NAME|DIR",
            parser=_path,
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(help="Folder for the transfer set: new, empty or an earlier set.", metavar="DIR", parser=_path),
    ],
    statistics: Annotated[
        Path | None,
        typer.Option(help="Folder with the teacher's statistics; estimated if not given.", metavar="DIR", parser=_path),
    ] = None,
    trust_factory: TrustFactory = None,
    assignments: NotWritten = None,
    debug: Debug = False,
) -> None:
    """Make a transfer set for any stored teacher, outside of DVC."""
    here = Path.cwd()
    with _reporting(debug, "Finished shards are kept. Continue with the same command."):
        from dfkd_core.transfer_set.target import check_target
        from dfkd_flows.settings.choosing import choose_teacher
        from dfkd_flows.settings.overrides import apply_overrides
        from dfkd_flows.settings.parsing import load_params
        from dfkd_flows.settings.trust import allow
        from dfkd_flows.stages.command import run_flow
        from dfkd_tasks.caching.stored_models import load_allowed_teacher
        from dfkd_tasks.caching.workspace import TeacherFiles

        params, name = choose_teacher(str(teacher), load_params())
        params = apply_overrides(params, assignments or [])
        folder = TeacherFiles(name).network if name else here / teacher
        out, statistics = here / out, statistics and here / statistics
        check_target(out)
        allow(params, trust_factory or (), folder)
        load_allowed_teacher(folder)
        run_flow("synthesize", "dfkd_flows.stages.synthesis", "synthesize_anywhere", params, folder, statistics, out)
        typer.echo(f"Made {out}. Check it with: dfkd verify {out}")


@app.command(epilog="Examples: dfkd verify | dfkd verify /tmp/set --teacher default")
def verify(
    folder: Annotated[
        Path | None,
        typer.Argument(
            metavar="NAME|DIR",
            help="Teacher in params.yaml, or a transfer set; that of the only teacher if not given.",
            parser=_path,
        ),
    ] = None,
    teacher: Annotated[
        Path | None,
        typer.Option(help="Teacher that it must belong to, by name or folder.", metavar="NAME|DIR", parser=_path),
    ] = None,
    trust_factory: TrustFactory = None,
    debug: Debug = False,
) -> None:
    """Check everything that a student relies on in a transfer set: hashes, shapes, positions, values and figures."""
    here = Path.cwd()
    with _reporting(debug, place="anywhere" if folder else "project"):
        from dfkd_core.synthesis.guards import balance_note
        from dfkd_core.transfer_set.manifest import verify_transfer_set
        from dfkd_flows.session.anywhere import in_project
        from dfkd_flows.settings.choosing import choose_teacher
        from dfkd_flows.settings.params import Params
        from dfkd_flows.settings.parsing import load_params
        from dfkd_tasks.caching.stored_models import load_allowed_teacher
        from dfkd_tasks.caching.trust import allow_factories
        from dfkd_tasks.caching.workspace import TeacherFiles

        params = load_params() if in_project() else Params()
        _, name = choose_teacher(str(folder) if folder else None, params)
        own = TeacherFiles(name) if name else None
        path = own.transfer_set if own else here / (folder or "")
        owner = own and own.network
        if teacher:
            _, name = choose_teacher(str(teacher), params)
            owner = TeacherFiles(name).network if name else here / teacher
        digest = None
        if owner:
            allow_factories(owner, trust_factory or ())
            digest = load_allowed_teacher(owner).digest
        manifest = verify_transfer_set(path, digest)
        count = f"{len(manifest.shards)} shards" if len(manifest.shards) > 1 else "1 shard"
        typer.echo(f"{path} is whole: {manifest.num_images} images in {count} by {manifest.method}")
        note = balance_note(manifest.class_histogram, method=manifest.method, method_config=manifest.method_config)
        if note:
            typer.echo(f"Note: {note}")


@app.command(
    epilog="Examples: dfkd layers --teacher torchvision:resnet18 | dfkd layers --teacher my_net:make --weights ckpt.pt"
)
def layers(
    teacher: TeacherSource = None,
    weights: Weights = None,
    trust_pickle: TrustPickle = False,
    trust_factory: TrustFactory = None,
    assignments: NotWritten = None,
    debug: Debug = False,
) -> None:
    """List the layers of a teacher whose features can be modelled, and mark the one that a run uses."""
    here = Path.cwd()
    with _reporting(debug, place="anywhere" if teacher else "project"):
        from dfkd_flows.commands.inspecting import list_layers

        params = _with_teacher(here, teacher, weights, trust_pickle, assignments)
        typer.echo(list_layers(params, trusted=trust_factory or ()))


@app.command(
    epilog="Examples: dfkd inspect --teacher model.onnx | dfkd inspect --teacher timm:resnet18 --weights ckpt.pt"
)
def inspect(
    teacher: TeacherSource = None,
    weights: Weights = None,
    trust_pickle: TrustPickle = False,
    trust_factory: TrustFactory = None,
    assignments: NotWritten = None,
    debug: Debug = False,
) -> None:
    """Report the properties of a teacher, the methods that work with it, and the time that they take here."""
    here = Path.cwd()
    with _reporting(debug, place="anywhere" if teacher else "project"):
        import torch

        from dfkd_flows.commands.inspecting import describe_teacher

        torch.set_num_threads(1)
        params = _with_teacher(here, teacher, weights, trust_pickle, assignments)
        typer.echo(describe_teacher(params, trusted=trust_factory or ()))


@app.command(
    epilog="Examples: dfkd calibrate model.onnx --out calib.npz | "
    "dfkd calibrate torchvision:resnet18 --weights ckpt.pt --out calib.npz --num-images 300"
)
def calibrate(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A file or a name as for --teacher of dfkd inspect, or a teacher in params.yaml.",
            parser=_text,
        ),
    ],
    out: Annotated[Path, typer.Option(help="New file for the images, .npz.", metavar="FILE", parser=_path)],
    num_images: Annotated[int, typer.Option(help="Number of images.", metavar="N")] = 256,
    weights: Weights = None,
    trust_pickle: TrustPickle = False,
    trust_factory: TrustFactory = None,
    assignments: NotWritten = None,
    debug: Debug = False,
) -> None:
    """Write calibration images for ONNX Runtime's, torchao's and other quantisers, made from the model alone."""
    here = Path.cwd()
    with _reporting(debug, place="anywhere"):
        from dfkd_flows.commands.calibrating import write_calibration_file

        params = _with_teacher(here, model, weights, trust_pickle, assignments)
        write_calibration_file(params, here / out, num_images=num_images, trusted=trust_factory or ())


@app.command(
    epilog="Examples: dfkd export --out exported | dfkd export --out with_int8 --int8 | "
    "dfkd export --student my_student --out exported --format onnx --bake-preprocessing"
)
def export(
    out: Annotated[
        Path,
        typer.Option(help="Folder for the export: new, empty or an earlier export.", metavar="DIR", parser=_path),
    ],
    student: Annotated[
        str | None,
        typer.Option(
            help="Student in params.yaml, or a folder with model.safetensors; the only one if not given.",
            metavar="NAME|DIR",
            parser=_text,
        ),
    ] = None,
    formats: Annotated[
        list[str] | None,
        typer.Option(
            "--format",
            help="safetensors, pt2 or onnx; repeatable. All whose packages are installed if not given.",
            metavar="NAME",
        ),
    ] = None,
    bake_preprocessing: Annotated[
        bool, typer.Option("--bake-preprocessing", help="Let pt2 and onnx take images in [0, 1], not normalised ones.")
    ] = False,
    int8: Annotated[bool, typer.Option("--int8", help="Add int8 versions of pt2 and onnx.")] = False,
    transfer_set: Annotated[
        Path | None,
        typer.Option(
            help="Images for the check and the calibration of int8; those of its training for a project's student.",
            metavar="DIR",
            parser=_path,
        ),
    ] = None,
    min_agreement: Annotated[
        float,
        typer.Option(
            help="Smallest share of images for which int8 must answer with the student's class.", metavar="SHARE"
        ),
    ] = 0.9,
    card: Annotated[
        bool, typer.Option("--card", help="Add cards of the student and its transfer set, in Hugging Face's form.")
    ] = False,
    trust_factory: TrustFactory = None,
    debug: Debug = False,
) -> None:
    """Write a student as safetensors, torch.export and ONNX. Each file is compared with it before it is kept."""
    here = Path.cwd()
    with _reporting(debug, place="anywhere" if student else "project"):
        from dfkd_flows.commands.exporting import export_student

        export_student(
            student,
            here,
            here / out,
            formats=formats or [],
            bake_preprocessing=bake_preprocessing,
            int8=int8,
            transfer_set=transfer_set and here / transfer_set,
            min_agreement=min_agreement,
            card=card,
            trusted=trust_factory or (),
        )


@app.command(
    name="export-set",
    epilog="Examples: dfkd export-set --format webdataset --out shards | dfkd export-set my_set --format parquet "
    "--out for_datasets",
)
def export_set(
    out: Annotated[Path, typer.Option(help="New or empty folder.", metavar="DIR", parser=_path)],
    format: Annotated[str, typer.Option(help="webdataset, imagefolder or parquet.", metavar="NAME", parser=_text)],
    folder: Annotated[
        Path | None,
        typer.Argument(
            metavar="NAME|DIR",
            help="Teacher in params.yaml, or a transfer set; that of the only teacher if not given.",
            parser=_path,
        ),
    ] = None,
    debug: Debug = False,
) -> None:
    """Write a transfer set for other training programs: pictures, the teacher's classes and its logits."""
    here = Path.cwd()
    with _reporting(debug, place="anywhere" if folder else "project"):
        from dfkd_flows.commands.exporting_sets import export_transfer_set

        export_transfer_set(folder, here, here / out, format=format)


@app.command(epilog="Example: dfkd push exported --hub OWNER/NAME")
def push(
    folder: Annotated[
        Path,
        typer.Argument(metavar="DIR", help="Folder of dfkd export or dfkd export-set.", parser=_path),
    ],
    hub: Annotated[str, typer.Option(help="Repository of Hugging Face.", metavar="OWNER/NAME", parser=_text)],
    public: Annotated[bool, typer.Option("--public", help="Make a new repository public, not private.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Upload without a question.")] = False,
    debug: Debug = False,
) -> None:
    """Upload an export to Hugging Face. The files are listed first. The token is read from HF_TOKEN."""
    here = Path.cwd()
    with _reporting(debug, place="anywhere"):
        from dfkd_flows.commands.pushing import push_to_hub

        push_to_hub(here / folder, hub, public=public, yes=yes)


@app.command(epilog="Examples: dfkd show | dfkd show small")
def show(
    name: Annotated[
        str | None, typer.Argument(help="Student in params.yaml; without it, several are compared.", show_default=False)
    ] = None,
    debug: Debug = False,
) -> None:
    """Show the table of a student's last run and commands to explore its results."""
    with _reporting(debug):
        from dfkd_flows.run.results import results_text
        from dfkd_flows.settings.parsing import load_params

        params = load_params()
        several = name is None and len(params.students) > 1
        typer.echo(results_text(params if several else params.only([params.the_student(name)])))


@app.command(
    epilog="Examples: dfkd compare | dfkd compare small tall --runs 5 | dfkd compare --metric student.ece --json"
)
def compare(
    names: Names = None,
    metric: Annotated[
        str | None,
        typer.Option(
            help="One figure: accuracy, agreement, size, latency, seconds, or a name in MLflow.",
            metavar="NAME",
            parser=_text,
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON: shares, bytes, milliseconds, seconds.")] = False,
    runs: Annotated[int, typer.Option(help="Add this many earlier runs of each student.", metavar="N")] = 0,
    debug: Debug = False,
) -> None:
    """Compare students: accuracy and agreement with 95 % intervals, size, latency of one image, seconds."""
    with _reporting(debug):
        from dfkd_flows.run.comparison import compare as table
        from dfkd_flows.settings.parsing import load_params

        typer.echo(table(load_params(), names=names or (), metric=metric, as_json=as_json, runs=runs))


@app.command(epilog="Examples: dfkd report | dfkd report small | dfkd report small tall")
def report(
    runs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[RUN]...",
            help="Students in params.yaml, or ids of runs in MLflow; all students if none is named.",
            show_default=False,
        ),
    ] = None,
    debug: Debug = False,
) -> None:
    """Make the report again, one page per student, and print its path; several runs are set side by side.

    `dfkd run` makes it at its end. The page needs no network.
    """
    with _reporting(debug):
        from dfkd_flows.report.command import report_runs
        from dfkd_flows.settings.parsing import load_params

        report_runs(load_params(), runs or ())


StudentName = Annotated[
    str | None,
    typer.Option("--student", help="Student of the project; the only one if not given.", metavar="NAME", parser=_text),
]


@app.command(
    epilog="Examples: dfkd promote | dfkd promote 3 --dry-run | dfkd promote 3 --set registry.enforce_rules=false"
)
def promote(
    version: Annotated[
        str | None, typer.Argument(help="Number of a registered version; the newest if not given.", parser=_text)
    ] = None,
    student: StudentName = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the decision and change nothing.")] = False,
    assignments: NotWritten = None,
    debug: Debug = False,
) -> None:
    """Evaluate a registered version again and make it the champion if it passes the rules. Exit code 1 if not."""
    with _reporting(debug):
        from dfkd_flows.registry.commands import promote_version
        from dfkd_flows.run.publishing import note_champion, registered_name
        from dfkd_flows.settings.overrides import apply_overrides

        params = apply_overrides(_of_student(student), assignments or [])
        model = registered_name(params)
        champion = promote_version(params, model, version, dry_run=dry_run)
        if champion:
            note_champion(params, model, champion)


@app.command(epilog="Example: dfkd rollback && dfkd history")
def rollback(student: StudentName = None, debug: Debug = False) -> None:
    """Make the previous champion the champion again."""
    with _reporting(debug):
        from dfkd_flows.registry.commands import roll_back_champion
        from dfkd_flows.run.publishing import note_champion, registered_name

        params = _of_student(student)
        model = registered_name(params)
        note_champion(params, model, roll_back_champion(params, model))


@app.command(epilog="Example: dfkd history")
def history(student: StudentName = None, debug: Debug = False) -> None:
    """Show all registered versions: dates, figures, decisions with their reasons, and aliases."""
    with _reporting(debug):
        from dfkd_flows.registry.commands import show_history
        from dfkd_flows.run.publishing import registered_name

        params = _of_student(student)
        show_history(params, registered_name(params))


def _of_student(name: str | None) -> Params:
    """Return the parameters of one student of the project, of the only one if it has no name."""
    from dfkd_flows.settings.parsing import load_params

    params = load_params()
    return params.for_student(params.the_student(name, "--student NAME"))


@app.command(epilog="Examples: dfkd notify | dfkd notify --trust")
def notify(
    trust: Annotated[
        bool, typer.Option("--trust", help="Allow the command and the address of params.yaml on this machine.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Try the command and the address that get a report when a run ends badly; see notify in params.yaml."""
    with _reporting(debug):
        from dfkd_flows.notify.command import try_notify
        from dfkd_flows.settings.parsing import load_params

        try_notify(load_params().notify, allow=trust)


@app.command(epilog="Example: dfkd up && dfkd deploy")
def up(debug: Debug = False) -> None:
    """Start Prefect's server, a worker and MLflow's page for this project in the background, and print their links.

    What runs already stays. Services of your own, see docs/services.md, are used and not started. All listen on
    127.0.0.1 only.
    """
    with _reporting(debug, "What has started stays. Stop it with: dfkd down"):
        from dfkd_flows.background.command import start_services

        start_services()


@app.command(epilog="Examples: dfkd down | dfkd down --yes")
def down(
    yes: Annotated[bool, typer.Option("--yes", help="End runs in progress without a question.")] = False,
    debug: Debug = False,
) -> None:
    """Stop what `dfkd up` has started. Runs that need it are named first, and end too."""
    with _reporting(debug):
        from dfkd_flows.background.command import stop_services

        stop_services(yes=yes)


@app.command(
    epilog="Examples: dfkd deploy --show | dfkd deploy --cron '30 1 * * 1-5' --timezone Europe/Berlin --git-pull"
)
def deploy(
    cron: Annotated[
        str, typer.Option(help="When the nightly runs start: minute, hour, day, month, weekday.", metavar="FIELDS")
    ] = "0 2 * * *",
    timezone: Annotated[str, typer.Option(help="Time zone of --cron.", metavar="NAME")] = "UTC",
    git_pull: Annotated[
        bool, typer.Option("--git-pull", help="Let the nightly runs pull the project's git repository first.")
    ] = False,
    name: Annotated[
        str | None,
        typer.Option(
            help="Name of this project on a Prefect server that others share; kept for the next time.", metavar="NAME"
        ),
    ] = None,
    show: Annotated[bool, typer.Option("--show", "--dry-run", help="Show the deployments and change nothing.")] = False,
    debug: Debug = False,
) -> None:
    """Make or update the work pool and the deployments: a nightly run per teacher, on demand, re-evaluation.

    Deployments of teachers that are gone are removed. See docs/nightly.md.
    """
    with _reporting(debug, "Continue with the same command."):
        from dfkd_flows.deploy.command import deploy_project, show_plan
        from dfkd_flows.deploy.plan import Schedule
        from dfkd_flows.settings.parsing import load_params

        act = show_plan if show else deploy_project
        act(load_params(), Schedule(cron=cron, timezone=timezone), name=name, git_pull=git_pull)


@app.command(epilog="Example: dfkd doctor")
def doctor(debug: Debug = False) -> None:
    """Check whether this machine and this project are ready, and suggest fixes. Exit code 1 if there is a fault."""
    from dfkd_flows.doctor import Verdict, examine, render

    findings = examine(debug=debug)
    typer.echo(render(findings))
    if any(finding.verdict is Verdict.FAULT for finding in findings):
        raise typer.Exit(_FAILED)


def _with_teacher(
    here: Path, teacher: str | None, weights: str | None, trust_pickle: bool, assignments: list[str] | None
) -> Params:
    """Return the project's parameters, or the defaults, with a teacher and changes that are not written."""
    from dfkd_flows.session.anywhere import in_project
    from dfkd_flows.settings.choosing import choose_teacher
    from dfkd_flows.settings.overrides import apply_overrides
    from dfkd_flows.settings.params import Params
    from dfkd_flows.settings.parsing import load_params
    from dfkd_flows.settings.teacher_source import as_assignments, source_changes

    params, name = choose_teacher(teacher, load_params() if in_project() else Params())
    source = None if name else teacher
    changes = source_changes(here=here, teacher=source, weights=weights, student=None, trust_pickle=trust_pickle)
    return apply_overrides(params, [*as_assignments(changes), *(assignments or [])])


@contextmanager
def _reporting(debug: bool, when_stopped: str = "", *, place: Place = "project") -> Iterator[None]:
    """Enter the project, or another place; turn an error or a signal into one message and an exit code."""
    from dfkd_core.errors import DfkdError
    from dfkd_flows.session.anywhere import entered
    from dfkd_flows.session.environment import DEBUG
    from dfkd_flows.session.stopping import stoppable
    from dfkd_tasks.processes.endings import means_full_disk, remedy

    debug = debug or DEBUG in os.environ
    with stoppable(when_stopped) as stop:
        try:
            with entered(place, debug=debug):
                yield
        except (KeyboardInterrupt, Exception) as error:
            # After Ctrl-C a stage can fail before this process receives its own interrupt, or instead of it.
            if stop.number:
                raise typer.Exit(stop.code) from None
            if isinstance(error, KeyboardInterrupt):
                _fail(f"Stopped. {when_stopped}", _INTERRUPTED)
            if debug:
                raise
            if isinstance(error, DfkdError):
                _fail(str(error), _exit_code(error))
            if isinstance(error, OSError):
                _fail(f"{error}. {remedy(error)}", _FAILED)
            if isinstance(error, ModuleNotFoundError) and (lacking := _pipeline_fault()):
                _fail(lacking, _FAILED)
            if means_full_disk(error):
                _fail(f"The disk is full: {error}. {remedy(OSError(errno.ENOSPC, ''))}", _FAILED)
            _fail(f"{type(error).__name__}: {error}\nThis is a bug in dfkd. Show the traceback with: --debug", _FAILED)


def _known_answer() -> str | None:
    from dfkd_flows.run.unchanged import known_answer
    from dfkd_flows.session.environment import find_project

    project = find_project(Path.cwd())
    return known_answer(project) if project else None


@contextmanager
def _only_run(*, wait: bool = False) -> Iterator[None]:
    from dfkd_flows.session.one_run import only_run

    with only_run(wait=wait):
        yield


def _is_outside(here: Path) -> bool:
    from dfkd_flows.session.environment import find_project, incomplete_project

    return find_project(here) is None and not incomplete_project(here)


def _exit_code(error: Exception) -> int:
    from dfkd_core.errors import ConfigError
    from dfkd_flows.session.one_run import BusyError

    if isinstance(error, BusyError):
        return _BUSY
    return _BAD_INPUT if isinstance(error, ConfigError) else _FAILED


def _pipeline_fault() -> str:
    from dfkd_core.installing import pipeline_fault

    return pipeline_fault()


def _fail(message: str, code: int) -> None:
    if message:
        typer.echo(f"dfkd: {message.strip()}", err=True)
    raise typer.Exit(code)


def _process_start() -> float:
    import psutil

    return float(psutil.Process().create_time())
