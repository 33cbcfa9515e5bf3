//! `edgefleet serve`: puts the parts together, runs them, and takes them apart in order.

mod around;
mod external;
mod metrics;
mod notify;
mod options;
mod tasks;
#[cfg(test)]
mod tests;

pub use external::controller_name;
pub use options::{Addresses, BrokerChoice, ServeOptions};

use crate::{
    alerts::{self, Alerts},
    api::{self, ApiParts, https::HttpsLimits, metrics::Metrics, operations::Operations},
    backup::{BackupParts, note_restored},
    blobs::{BlobStore, local::LocalBlobs},
    broker::{
        Broker, BrokerEvent, EVENT_CAPACITY,
        embedded::{EmbeddedBroker, EmbeddedParams},
        external::{ExternalBroker, ExternalParams},
        tls::{ClockTime, mqtt_server_config},
    },
    captures::{
        CaptureLimits, Captures, Courier,
        http::{self as captures_http, CapturesApi},
    },
    clock,
    commands::Commands,
    desired::DesiredStates,
    driver::{Driver, DriverParts, Order},
    export::{self, BundleGauges, OtlpPush},
    findings::Findings,
    fleet::{
        Endpoints, Fleet, FleetParts,
        ca::Ca,
        data_dir::DataDir,
        server_names::{ServerNames, host_of},
    },
    ingest::{Ingest, Keeper, Monitoring},
    link::{EventLoop, EventTotals, HandOut, Resends, Takeovers},
    lookout::{Lookout, LookoutParts, Reading, Registered, Sources},
    registry::{self, Registry, RegistryParts, probe::Prober},
    rollouts::{Calendars, Documents, RolloutDriver, RolloutParts, Rollouts},
    settings::SettingsRules,
    signing::{
        http::{self as trust_http, TrustApi},
        setup,
    },
    store::{
        FleetStore, Health,
        announced::{Announced, Changes},
        audit::AuditLog,
        sled_home::{OpenOutcome, SledConfig, SledStore},
    },
    taking::{Taking, TakingParts},
    transfer::BlockServer,
    web::{self, WebParts},
};
use anyhow::Context;
use arc_swap::ArcSwap;
use around::{Around, SessionsAndOrders};
use parking_lot::Mutex;
use rustls::{RootCertStore, ServerConfig};
use std::{path::Path, sync::Arc, time::Duration};
use tasks::Tasks;
use tokio::{
    net::TcpListener,
    sync::{broadcast, mpsc},
};
use tokio_util::sync::CancellationToken;

/// How often the store's health and the server certificate are looked at.
const WATCH: Duration = Duration::from_secs(5);
/// How often rules are looked at whose time may be over.
const RULES_LOOKED_AT: Duration = Duration::from_secs(30);
/// After this many looks the certificate is due for a look too: about once in an hour.
const CERTIFICATE_LOOKS: u32 = 720;
/// Answers to commands that may wait for their asker.
const REPLIES: usize = 1_024;
/// For what is under way when the controller stops. Sessions and requests end within 4 s before it.
const FINISH: Duration = Duration::from_secs(1);

/// Runs the controller until `shutdown` is cancelled or it cannot go on.
///
/// # Errors
/// Why it could not start, or why it had to stop.
pub async fn serve(options: ServeOptions, shutdown: CancellationToken) -> anyhow::Result<()> {
    let data = DataDir::open(&options.data)?;
    let dir = data.path();
    let (store, outcome) =
        SledStore::open(SledConfig::new(data.store())).await.context("could not open the fleet's state")?;
    if outcome != OpenOutcome::Clean {
        tracing::warn!(?outcome, "store.open");
    }
    let changes = Changes::default();
    let store: Arc<dyn FleetStore> = Arc::new(Announced::new(store, changes.clone()));
    let audit = Arc::new(AuditLog::new(store.clone()));
    if let Some(note) = note_restored(&store, &audit, clock::now()).await? {
        println!("This controller was restored from a backup of {}.", note.created);
    }
    let (blobs, swept) = LocalBlobs::open(dir.join("blobs")).await.context("could not open the blobs")?;
    if swept > 0 {
        tracing::info!(swept, "removed unfinished uploads of an earlier process");
    }
    let blobs: Arc<dyn BlobStore> = Arc::new(blobs);

    let https = TcpListener::bind(options.https)
        .await
        .with_context(|| format!("could not listen on {} (HTTPS)", options.https))?;
    let https_address = https.local_addr()?;
    let url = options.public_url.clone().unwrap_or_else(|| {
        // Listening everywhere is no address to give to devices.
        let host = match https_address.ip() {
            ip if ip.is_unspecified() => "localhost".to_owned(),
            ip => ip.to_string(),
        };
        format!("https://{host}:{}", https_address.port())
    });
    let names = ServerNames::default().with_url(&url)?.with_host(&options.mqtt.ip().to_string());
    let ca = Arc::new(Ca::open(data.ca(), &names, clock::now())?);
    let keys = setup::open_or_create(dir, clock::now())?;
    if let Some(created) = &keys.created {
        println!("{created}");
    }

    let fleet = Fleet::open(FleetParts {
        store: store.clone(),
        audit: audit.clone(),
        ca: ca.clone(),
        trust: Arc::new(around::Chain(keys.trust.clone())),
        clock: clock::wall(),
        endpoints: Endpoints { url: url.clone(), mqtt_host: host_of(&url)?, mqtt_port: 0 },
    })
    .await?;
    let fleet = Arc::new(fleet);
    let tls = Tls::new(&ca)?;
    let mut tasks = Tasks::default();
    let (broker, events, mqtt) = start_broker(&options, &fleet, &ca, &tls, dir, &mut tasks).await?;
    let mqtt_host = match &options.broker {
        BrokerChoice::Embedded => host_of(&url)?,
        BrokerChoice::External { host, .. } => host.clone(),
    };
    fleet.set_endpoints(Endpoints { url: url.clone(), mqtt_host, mqtt_port: mqtt.1 });

    let registry = Arc::new(
        Registry::new(RegistryParts {
            store: store.clone(),
            audit: audit.clone(),
            blobs: blobs.clone(),
            trust: keys.trust.clone(),
            prober: Prober::new(options.agent_bin.clone(), options.ort_lib.clone()),
            work: dir.join("work"),
        })
        .context("could not prepare the folder for checks")?,
    );
    let blocks = BlockServer::new(registry.clone(), broker.clone(), options.limits);
    let documents = Documents::new(store.clone());
    let rollouts = Rollouts::new(documents.clone(), audit.clone(), fleet.clone());
    let calendar = Calendars::open(store.clone(), audit.clone()).await?;
    let settings = SettingsRules::open(store.clone(), audit.clone(), fleet.clone()).await?;
    let states = DesiredStates::new(store.clone(), keys.online.clone(), settings.clone());
    let findings = Arc::new(Findings::open(store.clone(), audit.clone()).await?);
    let alerts = Alerts::open(store.clone(), options.alerts.clone(), clock::wall()).await?;
    let telling = alerts.clone();
    tasks.spawn("alerts", |stop| telling.run(stop));
    let hand_out =
        Arc::new(HandOut::new(states.clone(), broker.clone(), keys.trust.clone(), findings.clone()));
    let monitoring = Monitoring::open(store.clone(), audit.clone()).await?;
    let captures =
        Captures::open(store.clone(), audit.clone(), blobs.clone(), CaptureLimits::default(), clock::now());
    let captures = Arc::new(captures.await.context("could not read the captures")?);
    let (watching, lookout) = Lookout::new(LookoutParts {
        store: store.clone(),
        monitoring: monitoring.clone(),
        sources: Sources::new(
            fleet.clone(),
            Arc::new(Registered { registry: registry.clone(), blobs: blobs.clone() }),
            captures.clone(),
        ),
    });
    tasks.spawn("lookout", |stop| watching.run(stop));
    let around = Arc::new(Around {
        registry: registry.clone(),
        broker: broker.clone(),
        findings: findings.clone(),
        fleet: fleet.clone(),
        lookout,
    });
    let (ingest, queue) = Ingest::new(store.clone(), rollouts.clone(), around, monitoring.clone());
    let ingest_totals = ingest.totals();
    // Ends with its queue, which ends with the event loop.
    tasks.spawn("telemetry", |_| ingest.run());
    let keeper = Keeper::new(store.clone(), monitoring.clone());
    tasks.spawn("old telemetry", |stop| keeper.run(stop));
    let (driver, orders) = Driver::new(DriverParts {
        rollouts: rollouts.clone(),
        hand_out: hand_out.clone(),
        fleet: fleet.clone(),
        blocks: blocks.clone(),
        findings: findings.clone(),
    });
    tasks.spawn("driver", |stop| driver.run(stop));
    let (rollout_driver, clerk) = RolloutDriver::new(RolloutParts {
        documents,
        audit: audit.clone(),
        key: keys.online.clone(),
        roster: fleet.clone(),
        devices: orders.clone(),
        calendar: calendar.clone(),
        rollouts: rollouts.clone(),
    });
    tasks.spawn("rollouts", |stop| rollout_driver.run(stop));
    let (replies, _) = broadcast::channel(REPLIES);
    let event_totals = Arc::new(EventTotals::default());
    let event_loop = EventLoop {
        fleet: fleet.clone(),
        hand_out: hand_out.clone(),
        ingest: queue,
        clerk,
        blocks: blocks.clone(),
        findings: findings.clone(),
        replies: replies.clone(),
        totals: event_totals.clone(),
        takeovers: Mutex::new(Takeovers::default()),
        resends: Mutex::new(Resends::default()),
    };
    tasks.spawn("device messages", |stop| event_loop.run(events, stop));
    fleet.set_sessions(Arc::new(SessionsAndOrders { broker: broker.clone(), orders: orders.clone() }));

    let commands = Commands::new(keys.online.clone(), broker.clone(), replies);
    let courier = Courier { captures: captures.clone(), fleet: fleet.clone(), commands: commands.clone() };
    tasks.spawn("captures", |stop| courier.run(stop));
    let captures_api = Arc::new(CapturesApi::new(
        captures.clone(),
        registry.clone(),
        states.clone(),
        orders.clone(),
        fleet.clone(),
    ));
    let lookout = Reading::new(store.clone(), audit.clone());
    let taking = Taking::new(TakingParts {
        store: store.clone(),
        audit: audit.clone(),
        lookout: lookout.clone(),
        rollouts: rollouts.clone(),
        settings: settings.clone(),
        captures: captures.clone(),
        registry: registry.clone(),
        blobs: blobs.clone(),
        monitoring: monitoring.clone(),
        fleet: fleet.clone(),
    });
    let operations = Arc::new(Operations {
        fleet: fleet.clone(),
        store: store.clone(),
        registry: registry.clone(),
        rollouts,
        calendar,
        links: options.limits,
        driver: orders.clone(),
        commands,
        blocks,
        ingest: ingest_totals,
        monitoring,
        events: event_totals,
        findings,
        states,
        settings: settings.clone(),
        lookout,
        taking,
    });
    let own_metrics = Arc::new(Metrics::default());
    metrics::add(&own_metrics, &operations, &broker);
    let told = alerts.clone();
    own_metrics.add_source(Box::new(move |text| told.metrics(text)));
    let rows = export::Source::new(store.clone());
    let gauges = BundleGauges::default();
    let (looking, from) = (gauges.clone(), rows.clone());
    tasks.spawn("bundle metrics", |stop| looking.run(from, clock::wall(), stop));
    own_metrics.add_source(Box::new(move |text| gauges.metrics(text)));
    if let Some(settings) = options.otlp.clone() {
        let push = OtlpPush::new(settings).context("the settings in `[otlp]` cannot be used")?;
        let (pushing, all, own) = (push.clone(), own_metrics.clone(), export::http::fleet_id(&fleet));
        own_metrics.add_source(Box::new(move |text| push.metrics(text)));
        tasks.spawn("otlp", |stop| pushing.run(all, own, clock::wall(), stop));
    }
    let stop_api = CancellationToken::new();
    let telling = changes.clone();
    tasks.spawn("changes", |stop| telling.run(stop));
    let pages = web::pages(WebParts {
        operations: operations.clone(),
        captures,
        clock: clock::wall(),
        changes,
        stop: stop_api.clone(),
    });
    let reached = broker.clone();
    let api = api::router(ApiParts {
        fleet: fleet.clone(),
        blobs: blobs.clone(),
        metrics: own_metrics,
        ready: vec![Arc::new(move || reached.ready())],
        pages,
        more: vec![
            api::operations::routes(operations),
            api::backup::routes(
                BackupParts {
                    store: store.clone(),
                    audit: audit.clone(),
                    blobs: blobs.clone(),
                    data: dir.to_owned(),
                },
                clock::wall(),
            ),
            registry::http::routes(registry),
            alerts::http::routes(alerts),
            export::http::routes(Arc::new(export::http::ExportApi {
                source: rows,
                fleet: fleet.clone(),
                clock: clock::wall(),
            })),
            captures_http::routes(captures_api),
            trust_http::routes(Arc::new(TrustApi {
                trust: keys.trust.clone(),
                audit: audit.clone(),
                data: dir.to_owned(),
            })),
        ],
    })?;
    if fleet.ensure_admin(&data.admin_token()).await?.is_some() {
        println!("Made the first administrator's token: {}", data.admin_token().display());
    }
    let trust = keys.trust.clone();
    let (rules, told) = (settings, orders.clone());
    tasks.spawn("settings", |stop| end_rules(rules, told, stop));
    tasks.spawn("trust", |stop| watch_trust(trust, orders, stop));
    let stopped = stop_api.clone();
    let serving =
        api::https::serve(https, tls.https.clone(), api.router, HttpsLimits::default(), async move {
            stopped.cancelled().await
        });
    let api = tokio::spawn(serving);
    let addresses = Addresses {
        pid: std::process::id(),
        https: https_address.to_string(),
        mqtt: format!("{}:{}", mqtt.0, mqtt.1),
        url,
    };
    addresses.write(dir).context("could not write the addresses")?;
    println!("Controller at {} (API), devices connect to {}", addresses.url, addresses.mqtt);
    notify::ready();

    let ended = tokio::select! {
        ended = watch(&store, &ca, &names, &tls, &shutdown) => ended,
        lost = tasks.first_end() => Err(lost),
    };
    notify::stopping();
    // Nothing new comes in: people's requests and devices' sessions end beside each other.
    stop_api.cancel();
    let (_, ()) = tokio::join!(api, broker.stop());
    // What was taken is finished; then the store.
    tasks.finish(FINISH).await;
    store.close().await.context("could not close the fleet's state")?;
    addresses.remove(dir);
    ended
}

/// TLS settings that both listeners take anew when the server certificate is renewed.
struct Tls {
    https: Arc<ArcSwap<ServerConfig>>,
    mqtt: Arc<ArcSwap<ServerConfig>>,
}

impl Tls {
    fn new(ca: &Ca) -> anyhow::Result<Self> {
        let (https, mqtt) = Self::configs(ca)?;
        Ok(Self {
            https: Arc::new(ArcSwap::from_pointee(https)),
            mqtt: Arc::new(ArcSwap::from_pointee(mqtt)),
        })
    }
    fn configs(ca: &Ca) -> anyhow::Result<(ServerConfig, ServerConfig)> {
        let identity = ca.server();
        let https = api::https::server_config(&identity, ca, clock::wall())?;
        let time = Arc::new(ClockTime(clock::wall()));
        let mqtt = mqtt_server_config(identity.chain.clone(), identity.key.clone_key(), roots(ca)?, time)?;
        Ok((https, mqtt))
    }
    fn renew(&self, ca: &Ca) -> anyhow::Result<()> {
        let (https, mqtt) = Self::configs(ca)?;
        self.https.store(Arc::new(https));
        self.mqtt.store(Arc::new(mqtt));
        Ok(())
    }
}

fn roots(ca: &Ca) -> anyhow::Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    roots.add(ca.certificate().clone())?;
    Ok(roots)
}

/// The broker, its events, and where devices find it.
type Started = (Arc<dyn Broker>, mpsc::Receiver<BrokerEvent>, (String, u16));

async fn start_broker(
    options: &ServeOptions,
    fleet: &Arc<Fleet>,
    ca: &Arc<Ca>,
    tls: &Tls,
    dir: &Path,
    tasks: &mut Tasks,
) -> anyhow::Result<Started> {
    match &options.broker {
        BrokerChoice::Embedded => {
            let (broker, events) = EmbeddedBroker::start(EmbeddedParams {
                data_dir: dir.join("broker"),
                listen: options.mqtt,
                tls: tls.mqtt.clone(),
                admission: fleet.clone(),
                clock: clock::wall(),
                max_connections: None,
                max_connections_per_address: None,
                event_capacity: EVENT_CAPACITY,
            })
            .await?;
            let address = broker.address();
            Ok((Arc::new(broker), events, (address.ip().to_string(), address.port())))
        }
        BrokerChoice::External { host, port, reload } => {
            let control = Arc::new(external::Control::new(fleet.clone(), ca.clone(), dir, reload.clone()));
            control
                .write_list()
                .await
                .map_err(anyhow::Error::from_boxed)
                .context("could not write the revocation list")?;
            let fresh = control.clone();
            tasks.spawn("revocation list", |stop| fresh.keep_fresh(stop));
            let own = ca.controller();
            let (broker, events) = ExternalBroker::start(ExternalParams {
                host: host.clone(),
                port: *port,
                name: external::controller_name(own)?,
                identity: external::client(own),
                roots: roots(ca)?,
                time: Arc::new(ClockTime(clock::wall())),
                control,
                event_capacity: EVENT_CAPACITY,
            })?;
            Ok((Arc::new(broker), events, (host.clone(), *port)))
        }
    }
}

/// Orders the fleet to be told whenever the chain of trust grows.
async fn watch_trust(
    trust: Arc<crate::signing::TrustStore>,
    orders: crate::driver::DriverHandle,
    stop: CancellationToken,
) {
    let mut head = trust.subscribe();
    loop {
        tokio::select! {
            changed = head.changed() => if changed.is_err() { return },
            () = stop.cancelled() => return,
        }
        orders.order(Order::TrustChanged).await;
    }
}

/// Takes rules away whose time is over, and has devices told.
async fn end_rules(rules: SettingsRules, orders: crate::driver::DriverHandle, stop: CancellationToken) {
    let mut ticks = tokio::time::interval(RULES_LOOKED_AT);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = ticks.tick() => {}
        }
        match rules.end(clock::now()).await {
            Ok(ended) if ended.is_empty() => {}
            Ok(ended) => {
                tracing::info!(rules = ?ended, "settings.end");
                orders.order(Order::SettingsChanged).await;
            }
            Err(error) => tracing::error!(%error, "settings.end"),
        }
    }
}

/// Waits for the end: asked for, or forced by a store that cannot go on.
async fn watch(
    store: &Arc<dyn FleetStore>,
    ca: &Ca,
    names: &ServerNames,
    tls: &Tls,
    shutdown: &CancellationToken,
) -> anyhow::Result<()> {
    let mut looks = 0u32;
    let mut ticks = tokio::time::interval(WATCH);
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            _ = ticks.tick() => {}
        }
        notify::alive();
        if let Health::Down { reason } = store.health().await {
            anyhow::bail!("the fleet's state cannot be used any more ({reason}); start the controller again");
        }
        looks += 1;
        if looks.is_multiple_of(CERTIFICATE_LOOKS) && ca.renew_server(names, clock::now())? {
            tls.renew(ca)?;
            tracing::info!("took a new server certificate");
        }
    }
}
