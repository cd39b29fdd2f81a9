//! `galerne quickstart`: from text to a specialised model and a chat page, in one command.
//!
//! Stages in order: prepare the data, plan, pre-train, tune on general chat, tune on the company, measure, export,
//! serve. Each leaves its result in the run folder under a name that appears when it is whole, so that `resume` finds
//! where to go on.

mod budget;
mod export;
mod measuring;
mod prepare;
mod serving;
mod settings;
mod stages;

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::Context as _;
use data::packing::PretrainingRows;
use data::shard::Shard;
use data::sheet::DataSheet;
use eval::figures::{bytes, duration, short};
use eval::report::{Report, TimedStage};
use formats::durable::{DirLock, refuse_link};
use train::Recipe;
use train::plan::RunPlan;

use crate::context::{Context, Form};
use crate::failure::Failure;
use crate::names::folder_name;
use crate::os::StopSignals;
use crate::run_dir::{ClaimedDir, make_numbered_dir};
use crate::{machine, run_plan, training};

use budget::BATCH;
use measuring::Measured;
use prepare::Prepared;
use serving::Serving;
use settings::{Plan, SETTINGS_FILE, Settings, is_budget};
use stages::Stage;

/// Disk that a quickstart takes at most: shards, three runs with two checkpoints each, three models.
const NEEDED_DISK_BYTES: u64 = 2 << 30;

/// Arguments of `galerne quickstart`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Minutes that all stages may take; sizes the model and the number of tokens [default: what 6.4
    /// million tokens take, at most 30]
    #[arg(long, value_name = "MINUTES")]
    budget: Option<f64>,
    /// Learn from the .txt and .md files of this folder instead of the bundled corpus
    #[arg(long, value_name = "DIR")]
    text: Option<PathBuf>,
    /// Seed of the corpus, the weights and the order of the data
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Port of the API and the chat page; 0 takes a free one
    #[arg(long, value_name = "PORT", default_value_t = 8080)]
    port: u16,
    /// End after the report instead of serving the models
    #[arg(long)]
    no_serve: bool,
}

/// Runs the command.
///
/// # Errors
/// When an argument, the text, the disk or the port will not do; [`Failure::Stopped`] after a signal, with what was done
/// saved.
pub(crate) fn run(args: Args, context: &Context) -> anyhow::Result<()> {
    if let Some(minutes) = args.budget.filter(|&minutes| !is_budget(minutes)) {
        let problem = format!("--budget {minutes}: expected a positive number of minutes");
        return Err(Failure::usage(problem).into());
    }
    let text = args.text.map(|folder| {
        folder.canonicalize().with_context(|| format!("cannot find {}", folder.display()))
    });
    let settings = Settings::new(args.seed, args.budget, text.transpose()?);
    let signals = StopSignals::take_all().context("cannot take signals")?;
    machine::check_disk("a quickstart", &context.runs_dir(), NEEDED_DISK_BYTES)?;
    let serving = if args.no_serve { None } else { Some(Serving::open(args.port)?) };
    // Models that stayed when their run was deleted keep their names.
    let has_models = |name: &str| {
        Stage::ALL.iter().any(|&stage| export::model_dir(name, stage, context).exists())
    };
    let dir = make_numbered_dir("quickstart", has_models, context)?;
    let lock = DirLock::acquire(&dir)?;
    settings.write(&dir)?;
    let claimed = Some(ClaimedDir::new(dir.clone()));
    Quickstart { _lock: lock, dir, claimed, settings, context, signals, serving }.go_on()
}

/// Goes on with the quickstart in `dir`, without a server.
///
/// # Errors
/// As [`run`].
pub(crate) fn resume(dir: &Path, context: &Context) -> anyhow::Result<()> {
    let lock = DirLock::acquire(dir)?;
    let settings = Settings::read(dir)?;
    refuse_foreign_text(dir, &settings, context)?;
    let signals = StopSignals::take_all().context("cannot take signals")?;
    let dir = dir.to_owned();
    Quickstart { _lock: lock, dir, claimed: None, settings, context, signals, serving: None }
        .go_on()
}

/// Refuses to read the text that a quickstart outside the home names: in a stranger's folder it may name any folder of the user,
/// whose text would then stand in the stranger's.
fn refuse_foreign_text(dir: &Path, settings: &Settings, context: &Context) -> anyhow::Result<()> {
    let Some(text) = &settings.text else { return Ok(()) };
    let home = context.runs_dir().canonicalize().ok();
    let is_of_home = dir.canonicalize()?.parent() == home.as_deref();
    if is_of_home || Prepared::of(dir).is_complete() {
        return Ok(());
    }
    let problem = format!(
        "{} is not in the home and would read the text in {}: start a new one with `galerne quickstart --text {}`",
        dir.display(),
        text.display(),
        text.display()
    );
    Err(Failure::usage(problem).into())
}

/// Whether a folder is that of a quickstart.
pub(crate) fn is_quickstart(dir: &Path) -> bool {
    dir.join(SETTINGS_FILE).is_file()
}

/// Seconds of all stages together, without the time of processes that were killed.
fn spent_s(stages: &[TimedStage]) -> f64 {
    stages.iter().map(|stage| stage.seconds).sum()
}

/// A quickstart under way.
struct Quickstart<'a> {
    _lock: DirLock,
    dir: PathBuf,
    /// Until there is something to go on with.
    claimed: Option<ClaimedDir>,
    settings: Settings,
    context: &'a Context,
    signals: StopSignals,
    serving: Option<Serving>,
}

impl Quickstart<'_> {
    fn go_on(mut self) -> anyhow::Result<()> {
        self.context.say(&format!("quickstart in {}", self.dir.display()));
        let prepared = self.prepared();
        if Prepared::of(&self.dir).is_complete()
            && let Some(claimed) = self.claimed.take()
        {
            claimed.keep();
        }
        let sheet = prepared?;
        let plan = self.planned()?;
        for stage in Stage::ALL {
            self.trained(stage, &plan)?;
        }
        let measured = self.measured()?;
        let report = export::report(&self.dir, &self.settings, sheet, measured, self.context)?;
        let stages = self.settings.stages.clone();
        let report = Report { seconds: spent_s(&stages), stages, ..report };
        export::write_models(&self.dir, &report, self.context)?;
        export::write_report(&self.dir, &report)?;
        self.show(&report)?;
        match self.serving.take() {
            Some(serving) => serving.serve(&report, &mut self.signals, self.context),
            None => {
                self.context.say("serve the models with `galerne serve`");
                Ok(())
            }
        }
    }

    fn show(&self, report: &Report) -> anyhow::Result<()> {
        self.context.say(&format!("report: {}", self.dir.join(export::REPORT_PAGE).display()));
        match self.context.form() {
            Form::Text => self.context.print(&report.to_text()),
            Form::Json => self.context.print_json(&report.summary()),
        }
    }

    /// Times a stage, tells the page of it, and stops after it when a signal came.
    fn stage<T>(
        &mut self,
        name: &str,
        work: impl FnOnce(&mut Self) -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        self.context.say(&format!("\n{name}"));
        if let Some(serving) = &self.serving {
            serving.set_status(name);
        }
        let start = Instant::now();
        let result = work(self);
        let seconds = start.elapsed().as_secs_f64();
        // Also of a stage that was stopped, which takes the rest of its time after a resume.
        match self.settings.stages.iter_mut().find(|stage| stage.name == name) {
            Some(stage) => stage.seconds += seconds,
            None => self.settings.stages.push(TimedStage { name: name.to_owned(), seconds }),
        }
        self.settings.write(&self.dir)?;
        let result = result?;
        self.context.say(&format!("  {} in {}", name, duration(seconds)));
        match self.signals.requested() {
            None => Ok(result),
            Some(signal) => {
                let next = Some(format!("go on with `galerne resume {}`", self.name()));
                let saved = Some(format!("{name} is done"));
                Err(Failure::Stopped { signal, saved, next }.into())
            }
        }
    }

    fn name(&self) -> String {
        folder_name(&self.dir)
    }

    fn prepared(&mut self) -> anyhow::Result<DataSheet> {
        let files = Prepared::of(&self.dir);
        refuse_link(files.dir())?;
        if !files.is_complete() {
            self.stage("preparing the data", |this| {
                let say = |line: &str| this.context.say(&format!("  {line}"));
                prepare::prepare(&this.dir, &this.settings, this.context.n_threads(), &say)
            })?;
        }
        Ok(DataSheet::read(&files.sheet())?)
    }

    fn planned(&mut self) -> anyhow::Result<Plan> {
        if let Some(plan) = self.settings.plan {
            return Ok(plan);
        }
        let plan = self.stage("planning", |this| {
            let shard = Shard::open(&Prepared::of(&this.dir).pretraining())?;
            let seed = this.settings.seed;
            let rows = PretrainingRows::new(vec![shard.documents], BATCH.seq_len, seed)?;
            this.context.say(&format!("  {} tokens of text", short(rows.n_tokens() as f64)));
            let spent_s = spent_s(&this.settings.stages);
            budget::make_plan(&this.context.device()?, &this.settings, &rows, spent_s)
        })?;
        self.settings.plan = Some(plan);
        self.settings.write(&self.dir)?;
        Ok(plan)
    }

    /// Trains a stage to its end, from where it stands.
    fn trained(&mut self, stage: Stage, plan: &Plan) -> anyhow::Result<()> {
        self.stage(stage.title(), |this| {
            let recipe = stage.recipe(&this.dir, &this.settings, plan)?;
            let (device, plan) = (this.context.device()?, this.announce(stage, &recipe)?);
            let open = || stage.open(&this.dir, recipe, device.clone());
            let mut run = run_plan::open_run(&plan, &device, open)?;
            let name = this.name();
            training::train(&mut run, &name, &this.signals)?;
            Ok(())
        })
    }

    /// Shows what a stage takes, and refuses when the disk or the memory is too small.
    fn announce(&self, stage: Stage, recipe: &Recipe) -> anyhow::Result<RunPlan> {
        let device = self.context.device()?;
        let plan = RunPlan::of_recipe(recipe)?.on(&device);
        let memory = plan.memory.total_bytes();
        self.context.say(&format!(
            "  {} parameters, {} steps, {} tokens, {:.1e} FLOP, {} of memory, checkpoints of {}",
            short(plan.config.n_parameters() as f64),
            recipe.n_steps,
            short(plan.n_tokens as f64),
            plan.flops,
            bytes(memory),
            bytes(plan.memory.checkpoint_bytes()),
        ));
        run_plan::check_fits(&plan, &stage.run_dir(&self.dir), &device)?;
        Ok(plan)
    }

    fn measured(&mut self) -> anyhow::Result<Vec<Measured>> {
        self.stage("measuring", |this| {
            let say = |line: &str| this.context.say(&format!("  {line}"));
            Stage::ALL
                .into_iter()
                .map(|stage| measuring::measure(&this.dir, stage, this.context, &say))
                .collect()
        })
    }
}
