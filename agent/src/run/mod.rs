//! Puts the agent together, in an order that serves before it connects, and takes it apart again.
//!
//! Start: lock, identity, outbox, listeners, updater (bundles from disk), link. Stop, within 5 s: no
//! new connections, requests in flight end, the updater writes down its orderly end, windows go to
//! the outbox, `offline` goes to the controller, files are closed. A part that ends by itself ends the
//! agent in the same order, with a failure.

mod adapters;
pub(crate) mod addresses;
mod baseline;
mod engines;
mod health;
mod host;
mod listeners;
pub(crate) mod lock;
mod packs;
mod parts;
mod renewal;
mod report;
mod route;
mod running;

use crate::{
    bindings::Bindings,
    capture::{Captures, upload::Uploader},
    config::Config,
    engine::{Engines, chooser::Budget, choosing::EngineChooser, pool::WorkerPool, probe::ProbeOptions},
    facts,
    identity::{self, FolderError, Identity, TrustedClock, enroll::TRUST_FOLDER, tls::TlsError},
    link::{
        Link, LinkConfig, LinkHandle,
        command::CommandGate,
        sender::{Cost, send_telemetry},
    },
    monitor::{Monitor, MonitorConfig, device::Senses},
    serving::{
        SlotTable,
        http::{ServingConfig, ServingState, serve, serve_metrics},
        listen::{SocketError, TlsError as CertificateError},
    },
    store::outbox::{Bounds, OpenOutcome, Outbox, OutboxError},
    update::{
        Blocks, Command, HttpsSource, Updater, UpdaterConfig, World, apply::OpenError, world::SettingsWatch,
    },
};
use adapters::{
    AgentClock, ChildProbe, CurrentHttps, LateLink, LinkStatus, OutboxStatus, ToOutbox, UpdateStatus,
};
use addresses::Addresses;
use arc_swap::ArcSwap;
use edgefleet_shared::ids::{BootId, DeviceId};
use host::ServingHost;
use listeners::Listeners;
use lock::{DataLock, LockError};
use parts::{Losses, parts};
use renewal::Renewal;
use report::{Reporter, ReportsTo};
use route::Router;
use running::EngineStatus;
use sd_notify::NotifyState;
use std::{
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::{Notify, mpsc, watch},
    task::JoinHandle,
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

/// Everything together; systemd and people wait no longer.
const STOP_LIMIT: Duration = Duration::from_secs(5);
/// For requests in flight, within it.
const DRAIN: Duration = Duration::from_secs(2);
const KEEP_ALIVE: Duration = Duration::from_secs(30);
/// Free disk a download must leave.
const DISK_RESERVE: u64 = 64 << 20;
/// What was found out about bundles and engines, under the data folder.
const ENGINES_FOLDER: &str = "engines";
/// Messages that may wait for the updater; it is busy for as long as a bundle takes to load.
const UPDATER_INBOX: usize = 256;
const SENDER_INBOX: usize = 64;
/// For chosen inputs on their way to the disk when the agent stops.
const CAPTURE_FLUSH: Duration = Duration::from_millis(500);
/// How often windows are looked at.
const MONITOR_TICK: Duration = Duration::from_secs(1);
/// How often the device itself is looked at.
const DEVICE_TICK: Duration = Duration::from_secs(60);
/// Longest window a controller may ask for: telemetry that never comes is none.
const LONGEST_WINDOW: Duration = Duration::from_secs(24 * 3600);
/// The same of profiles, which are cut more rarely.
const LONGEST_PROFILE: Duration = Duration::from_secs(7 * 24 * 3600);

/// Why the agent does not run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error("this device is not enrolled: there is no identity in `{}`", data.display())]
    NotEnrolled { data: PathBuf },
    #[error(transparent)]
    Lock(#[from] LockError),
    #[error("could not read this device's identity")]
    Identity(#[from] FolderError),
    #[error("this device's certificates cannot be used")]
    Tls(#[from] TlsError),
    #[error("could not open the telemetry outbox")]
    Outbox(#[from] OutboxError),
    #[error("could not listen on {address} (`{key}`)")]
    Listen { key: &'static str, address: SocketAddr, source: io::Error },
    #[error("could not listen on the socket file (`serving.socket`)")]
    Socket(#[from] SocketError),
    #[error("could not use the certificate of `remote.listen`")]
    Certificate(#[from] CertificateError),
    #[error("could not start {what}")]
    Start { what: &'static str, source: io::Error },
    #[error("could not restore the state of this device")]
    Restore(#[from] OpenError),
}

impl RunError {
    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        let text = match self {
            Self::NotEnrolled { data } => {
                format!("run `edgefleet-agent enroll CODE --data {}` first", data.display())
            }
            Self::Lock(LockError::Held { .. }) | Self::Outbox(OutboxError::InUse { .. }) => {
                "stop the other agent, or give this one its own `--data`".into()
            }
            Self::Lock(LockError::Io { .. }) => {
                "check owner and permissions, or choose another `--data`".into()
            }
            Self::Identity(_) | Self::Tls(_) | Self::Restore(OpenError::Trust(_)) => {
                "get a new join code and run `edgefleet-agent enroll CODE --force`".into()
            }
            Self::Listen { key, .. } => {
                format!("stop what uses the port, or choose another `{key}`; port 0 takes a free one")
            }
            Self::Socket(SocketError::InUse { .. }) => {
                "stop who listens there, or choose another `serving.socket`".into()
            }
            Self::Socket(_) => {
                "choose a `serving.socket` in a folder that exists and that this user may write to".into()
            }
            Self::Certificate(_) => "check `remote.tls_certificate` and `remote.tls_key`".into(),
            Self::Outbox(_) | Self::Start { .. } | Self::Restore(_) => return None,
        };
        Some(text)
    }
}

/// Runs the agent until SIGTERM or SIGINT, also while it starts. The exit code is a failure if a part
/// of it ended by itself.
///
/// # Errors
/// [`RunError`] if it cannot start.
pub async fn run(config: Config) -> Result<ExitCode, RunError> {
    let _lock = DataLock::take(&config.data)?;
    Addresses::remove(&config.data);
    let identity =
        identity::load(&config.data)?.ok_or_else(|| RunError::NotEnrolled { data: config.data.clone() })?;
    let mut signals = Signals::listen()?;
    let (agent, mut losses) = tokio::select! {
        started = Agent::start(config, identity) => started?,
        reason = signals.told() => {
            info!(reason, "stopping before the start was complete");
            return Ok(ExitCode::SUCCESS);
        }
    };
    notify(&[NotifyState::Ready]);
    let (reason, code) = match live(&mut signals, &mut losses).await {
        Ended::Told(reason) => (reason, ExitCode::SUCCESS),
        Ended::Lost(part) => {
            error!(part, "a part of the agent ended by itself; the agent ends too, to be started whole");
            ("a part of the agent failed", ExitCode::FAILURE)
        }
    };
    info!(reason, "stopping");
    notify(&[NotifyState::Stopping]);
    if timeout(STOP_LIMIT, agent.stop(reason)).await.is_err() {
        warn!("not everything ended within {} s", STOP_LIMIT.as_secs());
    }
    Ok(code)
}

struct Agent {
    config: Config,
    shutdown: CancellationToken,
    servers: JoinHandle<()>,
    monitor: Arc<Monitor>,
    pool: Arc<WorkerPool>,
    outbox: Outbox,
    bindings: JoinHandle<()>,
    updater: mpsc::Sender<Command>,
    updater_task: JoinHandle<()>,
    link: LinkHandle,
    link_task: JoinHandle<()>,
    captures: Option<Captures>,
    /// Have nothing to write down: cut off at the end.
    background: Vec<JoinHandle<()>>,
}

impl Agent {
    async fn start(config: Config, identity: Identity) -> Result<(Self, Losses), RunError> {
        let (parts, losses) = parts();
        let started = Instant::now();
        let device = identity.device().clone();
        let boot = BootId::from_random(rand::random());
        let clock = TrustedClock::system();
        let tls = identity.tls(&clock)?;
        let (outbox, outcome) = open_outbox(&config, boot).await?;
        match &outcome {
            OpenOutcome::New | OpenOutcome::Kept { .. } => info!(?outcome, "outbox"),
            OpenOutcome::Recovered { .. } | OpenOutcome::Unavailable { .. } => error!(?outcome, "outbox"),
        }

        let agent_clock = Arc::new(AgentClock { started, trusted: clock.clone() });
        let sink = Arc::new(ToOutbox(outbox.clone()));
        let watching =
            MonitorConfig { remembers: config.cache > 0, ..MonitorConfig::new(device.clone(), boot) };
        let monitor = Arc::new(Monitor::new(watching, agent_clock, sink));
        let slots = SlotTable::new(monitor.clone());
        let threads = match config.threads {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            threads => threads,
        };
        let pool = WorkerPool::new(threads, config.queue)
            .map_err(|source| RunError::Start { what: "the inference threads", source })?;
        let pool = Arc::new(pool);
        let engines = Engines::new(config.engine_onnxruntime.as_deref());
        engines.tract().warm_up();

        let Listeners { serving: listeners, metrics, bound } = Listeners::open(&config).await?;
        let serving = ServingConfig {
            body_limit_bytes: config.body_limit,
            body_budget_bytes: config.body_limit.saturating_mul(4),
            drain_timeout: DRAIN,
            host_names: config.host_names.clone(),
            local_token: config.local_token.as_ref().map(|token| token.reveal().to_owned()),
            remote_token: config.remote_token.as_ref().map(|token| token.reveal().to_owned()),
            shared_memory: config.shared_memory,
            triton_metrics: config.triton_metrics,
            batch_rows: config.batch,
            batch_delay: config.batch_delay,
            write_timeout: config.write_timeout,
            idle_timeout: config.idle_timeout,
            cache_bytes: usize::try_from(config.cache).unwrap_or(usize::MAX),
            ..ServingConfig::default()
        };
        let state = ServingState::new(serving, slots.clone(), pool.clone(), monitor.clone());
        state.set_ready(false);
        let captures = open_captures(&config, device.clone(), boot).await;
        if let Some(captures) = &captures {
            state.set_captures(captures.clone());
            state.add_status(Arc::new(captures.clone()));
        }

        let late_link = Arc::new(LateLink::default());
        let https = HttpsSource::new((*tls).clone(), &identity.controller.url);
        let https = Arc::new(CurrentHttps(ArcSwap::from_pointee(https)));
        let run_id: String = boot.to_string().chars().take(8).collect();
        let blocks = Blocks::new(late_link.clone(), device.clone(), &run_id);
        let probe = ProbeOptions {
            runner: config.probe_runner.iter().map(Into::into).collect(),
            time_limit: config.probe_timeout,
            memory_headroom_bytes: config.probe_memory_headroom,
            ..ProbeOptions::this_program()
        };
        let remembered = Some(config.data.join(ENGINES_FOLDER));
        let policy = config.engine_policy.clone();
        let chooser = Arc::new(EngineChooser::new(engines, policy, probe, Budget::DEFAULT, remembered));
        let host = Arc::new(ServingHost::new(slots, monitor.clone(), chooser.clone()));
        let (reports, latest) = watch::channel(None);
        let world = World {
            probe: Arc::new(ChildProbe { chooser: chooser.clone(), packs: host.packs().clone() }),
            host: host.clone(),
            reports: Arc::new(ReportsTo { latest: reports, outbox: outbox.clone(), clock: clock.clone() }),
            blocks: blocks.clone(),
            https: Some(https.clone()),
        };
        let trust_dir = config.data.join(TRUST_FOLDER);
        let mut updater = Updater::open(
            UpdaterConfig {
                data_dir: config.data.clone(),
                trust_dir: trust_dir.clone(),
                device: device.clone(),
                hardware: config.hardware.clone(),
                reserve_bytes: DISK_RESERVE,
                random: rand::random(),
                clock: crate::clock::now,
            },
            world,
        )?;
        clock.raise(updater.floor());
        let settings = updater.settings();
        let trouble = Arc::new(parking_lot::RwLock::new(None));
        state.add_status(Arc::new(LinkStatus {
            link: late_link.clone(),
            controller: identity.controller.url.clone(),
            trouble: trouble.clone(),
        }));
        state.add_status(Arc::new(OutboxStatus(outbox.clone())));
        state.add_status(Arc::new(UpdateStatus(latest.clone())));
        let engines = EngineStatus { chooser: chooser.clone(), running: host.engines().clone() };
        state.add_status(Arc::new(engines.clone()));

        let bindings =
            Bindings::new(config.bindings.clone(), state.clone(), device.clone(), config.body_limit);

        let addresses = Addresses {
            http: bound.http,
            grpc: bound.grpc,
            remote: bound.remote,
            socket: bound.socket,
            metrics: bound.metrics,
            device: device.clone(),
            pid: std::process::id(),
        };
        let shutdown = CancellationToken::new();
        let serving = serve(listeners, state.clone(), shutdown.clone());
        let measuring = serve_metrics(metrics, state.clone(), shutdown.clone());
        let servers = parts.spawn("serving", async {
            tokio::join!(serving, measuring);
        });

        if let Some(captures) = &captures {
            set_policies(captures, &settings).await;
        }
        // What was active before serves again before the network is asked anything.
        updater.start().await;
        state.set_ready(true);
        let bindings = parts.spawn("bindings", bindings.run(shutdown.clone()));
        let (updater_inbox, commands) = mpsc::channel(UPDATER_INBOX);
        let updater_task = parts.spawn("updater", updater.run(commands));

        let link_config = LinkConfig {
            host: identity.controller.mqtt_host.clone(),
            port: identity.controller.mqtt_port,
            device: device.clone(),
            boot,
            keep_alive: KEEP_ALIVE,
        };
        let (link, events, link_task) = Link::start(link_config, tls);
        let link_task = parts.spawn("link", async { link_task.await.unwrap_or_default() });
        late_link.set(link.clone());
        let (sender, signals) = mpsc::channel(SENDER_INBOX);
        let report_now = Arc::new(Notify::new());
        let reporter = Reporter {
            sent: 0,
            link: link.clone(),
            device: device.clone(),
            boot,
            facts: facts::gather(&config.hardware, vec![]),
            engines,
            clock: clock.clone(),
            latest: latest.clone(),
            settings: settings.clone(),
            now: report_now.clone(),
        };
        let router = Router {
            device: device.clone(),
            trust_dir,
            clock: clock.clone(),
            link: link.clone(),
            updater: updater_inbox.clone(),
            blocks,
            sender,
            monitor: monitor.clone(),
            captures: captures.clone(),
            report_now: report_now.clone(),
            latest,
            trouble,
            gate: CommandGate::default(),
            trust: None,
        };
        let carrier = https.clone();
        let renewal = Renewal { identity, data: config.data.clone(), clock, link: link.clone(), https };
        let metered = config.link_metered;
        let policies = settings.clone();
        let mut background = vec![
            parts.spawn("router", router.run(events)),
            parts.spawn("reporter", reporter.run()),
            parts.spawn(
                "telemetry sender",
                send_telemetry(
                    outbox.clone(),
                    link.clone(),
                    device.clone(),
                    signals,
                    Cost { settings: settings.clone(), metered },
                ),
            ),
            parts.spawn("monitor", tick(monitor.clone(), settings)),
            parts.spawn("device health", look_at_device(monitor.clone(), config.data.clone())),
            parts.spawn("certificate renewal", renewal.run()),
            parts.spawn("outbox", outbox.ended()),
            parts.spawn("engine choice", engines::reconsider(host, report_now.clone())),
        ];
        if let Some(captures) = &captures {
            let uploader = Uploader::new(captures.clone(), carrier, config.link_metered);
            background.push(parts.spawn("capture uploads", uploader.run()));
            background.push(parts.spawn("capture policies", follow(captures.clone(), policies)));
        }
        addresses
            .write(&config.data)
            .map_err(|source| RunError::Start { what: "writing run/addresses.json", source })?;
        info!(%device, http = %addresses.http, metrics = %addresses.metrics, "running");
        let agent = Self {
            config,
            shutdown,
            servers,
            monitor,
            pool,
            outbox,
            bindings,
            updater: updater_inbox,
            updater_task,
            link,
            link_task,
            background,
            captures,
        };
        Ok((agent, losses))
    }

    async fn stop(self, reason: &str) {
        self.shutdown.cancel();
        self.servers.await.ok();
        timeout(Duration::from_secs(1), self.bindings).await.ok();
        let orderly = async {
            self.updater.send(Command::Stop).await.ok(); // it has ended already
            self.updater_task.await.ok();
        };
        timeout(Duration::from_secs(1), orderly).await.ok();
        self.monitor.flush();
        if let Some(captures) = self.captures {
            tokio::task::spawn_blocking(move || captures.flush(CAPTURE_FLUSH)).await.ok();
        }
        self.outbox.flush().await;
        self.link.close(reason);
        timeout(Duration::from_secs(2), self.link_task).await.ok();
        self.background.iter().for_each(JoinHandle::abort);
        self.outbox.close().await;
        Addresses::remove(&self.config.data);
        let pool = self.pool;
        tokio::task::spawn_blocking(move || pool.shutdown()).await.ok();
    }
}

async fn open_outbox(config: &Config, boot: BootId) -> Result<(Outbox, OpenOutcome), RunError> {
    let dir = config.data.join("outbox");
    let bounds = Bounds { records: config.outbox_records, bytes: config.outbox_bytes };
    let opened = tokio::task::spawn_blocking(move || Outbox::open(&dir, boot, bounds)).await;
    let opened = opened.map_err(|e| RunError::Start { what: "the outbox", source: io::Error::other(e) })?;
    Ok(opened?)
}

/// A folder that cannot be used costs the captures, not the device.
async fn open_captures(config: &Config, device: DeviceId, boot: BootId) -> Option<Captures> {
    let (dir, limit) = (config.data.join("captures"), config.captures_bytes);
    let started = tokio::task::spawn_blocking(move || Captures::start(&dir, limit, device, boot)).await;
    match started.map_err(io::Error::other) {
        Ok(Ok(captures)) => Some(captures),
        Ok(Err(error)) => {
            error!(error = %anyhow::Error::new(error).root_cause(), "nothing can be captured");
            None
        }
        Err(error) => {
            error!(%error, "nothing can be captured");
            None
        }
    }
}

async fn set_policies(captures: &Captures, settings: &SettingsWatch) {
    let (captures, policies) = (captures.clone(), settings.borrow().captures.clone());
    tokio::task::spawn_blocking(move || captures.set_policies(&policies)).await.ok();
}

/// Keeps to the capture policies of the settings in force.
async fn follow(captures: Captures, mut settings: SettingsWatch) {
    while settings.changed().await.is_ok() {
        set_policies(&captures, &settings).await;
    }
    std::future::pending::<()>().await; // the updater ended, which is told by itself
}

/// Cuts windows when their time has come.
async fn tick(monitor: Arc<Monitor>, mut settings: SettingsWatch) {
    let mut ticks = tokio::time::interval(MONITOR_TICK);
    loop {
        let (window, profile) = {
            let settings = settings.borrow_and_update();
            (Duration::from_secs(settings.window_secs), Duration::from_secs(settings.profile_secs))
        };
        monitor.set_window(window.min(LONGEST_WINDOW));
        monitor.set_profile(profile.min(LONGEST_PROFILE));
        ticks.tick().await;
        monitor.tick();
    }
}

/// Beside everything else: the system takes its time to say how much memory there is.
async fn look_at_device(monitor: Arc<Monitor>, data: PathBuf) {
    let mut ticks = tokio::time::interval(DEVICE_TICK);
    let started = Instant::now();
    let mut senses = Senses::new(Path::new("/"), &data);
    loop {
        ticks.tick().await;
        let look = move || (senses.look(started.elapsed()), senses);
        // Nothing in it panics; if it did, the next look would begin anew.
        match tokio::task::spawn_blocking(look).await {
            Ok((seen, back)) => {
                monitor.set_device(seen);
                senses = back;
            }
            Err(_) => senses = Senses::new(Path::new("/"), &data),
        }
    }
}

fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        warn!(%error, "systemd was not told");
    }
}

struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

impl Signals {
    fn listen() -> Result<Self, RunError> {
        let failed = |source| RunError::Start { what: "listening for signals", source };
        Ok(Self {
            terminate: signal(SignalKind::terminate()).map_err(failed)?,
            interrupt: signal(SignalKind::interrupt()).map_err(failed)?,
        })
    }

    /// Waits until somebody tells the agent to stop.
    async fn told(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "stopped by SIGTERM",
            _ = self.interrupt.recv() => "stopped by SIGINT",
        }
    }
}

/// Why the agent's life is over.
#[derive(Debug, PartialEq, Eq)]
enum Ended {
    Told(&'static str),
    /// This part of it ended by itself.
    Lost(&'static str),
}

/// Feeds the watchdog until told to stop, or until a part that must live does not.
async fn live(signals: &mut Signals, losses: &mut Losses) -> Ended {
    let watchdog = sd_notify::watchdog_enabled().map(|limit| limit / 2);
    let mut feed = tokio::time::interval(watchdog.unwrap_or(Duration::from_secs(3600)));
    loop {
        tokio::select! {
            reason = signals.told() => return Ended::Told(reason),
            part = losses.next() => return Ended::Lost(part),
            _ = feed.tick(), if watchdog.is_some() => notify(&[NotifyState::Watchdog]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_agent_that_lost_a_part_does_not_live_on() {
        let mut signals = Signals::listen().unwrap();
        let (parts, mut losses) = parts();
        let _living = parts.spawn("updater", std::future::pending());
        let lived = timeout(Duration::from_millis(50), live(&mut signals, &mut losses)).await;
        assert!(lived.is_err(), "{lived:?}");
        parts.spawn("router", async { panic!("told to") });
        assert_eq!(live(&mut signals, &mut losses).await, Ended::Lost("router"));
    }
}
