//! The checks before the start: the action is opened, compiled if it has to be, and inspected.

use crate::action::{DEFAULT_MAIN, environment_of, of_command, open, stdout_kind, unannounced};
use crate::artifact::compile::compile;
use crate::artifact::inspect::{Inspection, TargetSystem, inspect};
use crate::artifact::{Artifact, LocalAction, Sources, unpack};
use crate::config::Inspect;
use crate::error::{Error, UploadError};

use super::report::{Check, Fault, Name, Verdict};
use super::{CheckRun, Plan};

/// The `PATH` of nearly every image.
///
/// Source: moby, `DefaultPathEnv`.
const IMAGE_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

impl CheckRun<'_> {
    /// Opens and inspects the action. Returns whether it is to be started.
    pub(super) async fn open_and_inspect(&mut self) -> bool {
        let artifact = match self.open().await {
            Ok(artifact) => artifact,
            Err(error) => {
                let faults = match &error {
                    Error::Upload(UploadError::Unusable { defects, .. }) => defects.iter().map(Fault::from).collect(),
                    error => vec![Fault::from(error)],
                };
                self.settle(Check { faults, ..Check::new(Name::Recognised, Verdict::Failed, "") });
                self.report.refused = Some(error);
                return false;
            }
        };
        self.launch.program.clone_from(&artifact.executable);
        self.launch.directory.clone_from(&artifact.directory);
        self.unannounced = unannounced(artifact.command.as_deref());
        self.launch.arguments = artifact.command.clone().unwrap_or_default();
        let Plan { settings, .. } = &self.plan;
        self.launch.stdout = stdout_kind(settings, settings.protocol, self.unannounced);
        self.launch.environment.extend(environment_of(self.launch.stdout));
        let target = match &self.plan.image_root {
            None => TargetSystem::of(&self.launch),
            // The variables of an image are not in its file system.
            Some(root) => TargetSystem::new(root, &artifact.directory, &[("PATH".into(), IMAGE_PATH.into())]),
        };
        let inspection = inspect(&artifact.executable, &target);
        let fatal: Vec<_> = match self.plan.not_started {
            // With `--inspect off` the findings are warnings.
            None if self.plan.settings.inspect == Inspect::Off => Vec::new(),
            // An executable for another machine may still run (binfmt_misc), and the start shows it.
            None => inspection.fatal().cloned().collect(),
            Some(_) => inspection.fatal_without_emulator().cloned().collect(),
        };
        let Inspection { what, defects, .. } = inspection;
        self.artifact = Some(artifact);
        self.settle(Check::passed(Name::Recognised, what));
        let verdict = match (fatal.is_empty(), defects.is_empty()) {
            (false, _) => Verdict::Failed,
            (true, false) => Verdict::Warning,
            (true, true) => Verdict::Passed,
        };
        let place = if self.plan.image_root.is_some() { "in that image" } else { "here" };
        let seen = if defects.is_empty() { format!("nothing that it needs is missing {place}") } else { String::new() };
        let faults = defects.iter().map(Fault::from).collect();
        self.settle(Check { faults, ..Check::new(Name::Executable, verdict, seen) });
        if let Some(not_started) = self.plan.not_started {
            self.settle_rest(Verdict::NotApplicable, not_started.reason());
        }
        if !fatal.is_empty() {
            self.report.refused =
                Some(Error::Upload(UploadError::Unusable { path: Some(self.launch.program.clone()), defects: fatal }));
            return false;
        }
        self.plan.not_started.is_none()
    }

    /// Opens the action, and compiles it if it is source code.
    async fn open(&mut self) -> Result<Artifact, Error> {
        let Plan { action, settings, compiler, environment, .. } = &self.plan;
        let bounds = unpack::Bounds { bytes: settings.max_unpacked.0, entries: settings.max_entries, halt: None };
        let artifact = match action {
            LocalAction::File(path) => {
                open(path, &settings.workdir, bounds, Sources::with(compiler.as_deref())).await?
            }
            LocalAction::Command(command) => of_command(command, environment)?,
        };
        let compiling = compile(
            &artifact,
            compiler.as_deref(),
            settings.main.as_deref().unwrap_or(DEFAULT_MAIN),
            environment,
            settings.compile_timeout.0,
            &self.reaper,
            &mut self.logs,
        );
        self.log_capture.during(compiling).await?;
        artifact.check_environment(self.plan.execution_env.as_deref())?;
        Ok(artifact)
    }
}
