//! Carries out what rollouts decided: load, repeat what is pending, tell the world's state, save, perform.
//!
//! It decides nothing. Every step may be cut off anywhere and repeated; two drivers may run on one store.

use super::{
    calendar::Calendars,
    deadlines::Deadlines,
    documents::Documents,
    hearing::{Clerk, ClerkTask},
    members,
    roster::Roster,
    service::{self, Rollouts},
    sweep, turns, verdicts,
    working::{Aftermath, Working},
};
use crate::{
    clock,
    driver::{DriverHandle, Order},
    rollout::{DeviceSaid, Effect, Event, Pending, Rollout, State, SweepKind, freeze, plan::OnOverlap},
    signing::signer::OnlineKey,
    store::{StoreError, Transaction, audit::AuditLog},
};
use edgefleet_shared::{
    ids::{DeviceId, RolloutId},
    time::Timestamp,
};
use parking_lot::Mutex;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// Longest sleep: clocks jump, and new devices may have come.
const LONGEST: Duration = Duration::from_secs(30);
/// Shortest time between two looks at one rollout that only waits for the clock.
const SHORTEST: Duration = Duration::from_millis(20);
/// After a store that could not.
const AFTER_ERROR: Duration = Duration::from_secs(5);
/// How often late joiners are looked for.
const JOIN_PASS: Duration = Duration::from_secs(60);
/// Attempts told the time in one transaction.
const CLOCKS: usize = 200;
/// Steps of one rollout before the others have their turn.
const STEPS: usize = 50;

/// Where it is said that a rollout is not what it was. Cheap to clone.
#[derive(Clone, Default)]
pub(super) struct Looks(Arc<Wanted>);

#[derive(Default)]
struct Wanted {
    rollouts: Mutex<BTreeSet<RolloutId>>,
    all: std::sync::atomic::AtomicBool,
    deadlines: Mutex<Deadlines>,
    notify: Notify,
}

impl Looks {
    /// After a transaction.
    pub(super) fn after(&self, aftermath: Aftermath) {
        {
            let mut deadlines = self.0.deadlines.lock();
            for (rollout, device, at) in aftermath.deadlines {
                deadlines.set(rollout, device, at);
            }
        }
        self.0.rollouts.lock().extend(aftermath.rollouts);
        self.0.notify.notify_one();
    }
    /// Something about all of them changed.
    pub(super) fn all(&self) {
        self.0.all.store(true, std::sync::atomic::Ordering::Release);
        self.0.notify.notify_one();
    }
}

/// What the driver is made of.
pub struct RolloutParts {
    pub documents: Documents,
    pub audit: Arc<AuditLog>,
    pub key: OnlineKey,
    pub roster: Arc<dyn Roster>,
    /// Who sends devices what is wanted of them.
    pub devices: DriverHandle,
    pub calendar: Calendars,
    pub rollouts: Rollouts,
}

/// The strand that carries rollouts out.
pub struct RolloutDriver {
    parts: RolloutParts,
    looks: Looks,
    clerk: ClerkTask,
    /// Open rollouts and when to look at each.
    open: BTreeMap<RolloutId, Timestamp>,
    joined: Timestamp,
}

/// What became of one step.
enum Stepped {
    /// There may be more to do at once.
    On,
    /// Nothing before then; `None`: never.
    Until(Option<Timestamp>),
}

impl RolloutDriver {
    /// The driver, and where reports of devices go.
    pub fn new(parts: RolloutParts) -> (Self, Clerk) {
        let looks = parts.rollouts.looks().clone();
        let (clerk, handle) = ClerkTask::new(parts.documents.clone(), parts.roster.clone(), looks.clone());
        (Self { parts, looks, clerk, open: BTreeMap::new(), joined: Timestamp::EPOCH }, handle)
    }

    /// Runs until `stop` is cancelled. Starts with what an earlier process left undone.
    pub async fn run(self, stop: CancellationToken) {
        let Self { parts, looks, clerk, open, joined } = self;
        let mut strand = Strand { parts, looks, open, joined };
        tokio::select! {
            () = strand.run() => {}
            () = clerk.run() => {}
            () = stop.cancelled() => {}
        }
    }
}

struct Strand {
    parts: RolloutParts,
    looks: Looks,
    open: BTreeMap<RolloutId, Timestamp>,
    joined: Timestamp,
}

impl Strand {
    async fn run(&mut self) {
        while let Err(error) = self.resume().await {
            tracing::error!(%error, "rollout.resume");
            tokio::time::sleep(AFTER_ERROR).await;
        }
        loop {
            let now = clock::now();
            let wanted = std::mem::take(&mut *self.looks.0.rollouts.lock());
            for id in wanted {
                self.open.insert(id, now);
            }
            if self.looks.0.all.swap(false, std::sync::atomic::Ordering::AcqRel) {
                self.open.values_mut().for_each(|at| *at = now);
                self.joined = Timestamp::EPOCH;
            }
            let due: Vec<_> =
                self.open.iter().filter(|(_, at)| **at <= now).map(|(id, _)| id.clone()).collect();
            for id in due {
                self.look(&id).await;
            }
            self.clocks().await;
            self.join().await;
            let next = self.open.values().copied().chain(self.looks.0.deadlines.lock().next()).min();
            let sleep = next.map_or(LONGEST, |at| at.since(clock::now())).clamp(SHORTEST, LONGEST);
            tokio::select! {
                () = self.looks.0.notify.notified() => {}
                () = tokio::time::sleep(sleep) => {}
            }
        }
    }

    /// Finds open rollouts and the deadlines of their attempts.
    async fn resume(&mut self) -> Result<(), StoreError> {
        let now = clock::now();
        for (_, rollout) in self.parts.documents.rollouts.list_all("").await? {
            let rollout = rollout.value;
            if rollout.is_terminal() && rollout.wake.is_none() && rollout.pending.is_empty() {
                continue;
            }
            let attempts = self.parts.documents.attempts.list_all(&format!("{}/", rollout.id)).await?;
            {
                let mut deadlines = self.looks.0.deadlines.lock();
                for (_, attempt) in attempts {
                    let attempt = attempt.value;
                    deadlines.set(attempt.rollout, attempt.device, attempt.deadline);
                }
            }
            self.open.insert(rollout.id, now);
        }
        Ok(())
    }

    async fn look(&mut self, id: &RolloutId) {
        for _ in 0..STEPS {
            match self.step(id, clock::now()).await {
                Ok(Stepped::On) | Err(StepError::Store(StoreError::StaleRevision { .. })) => {}
                Ok(Stepped::Until(Some(at))) => {
                    self.open.insert(id.clone(), at.max(clock::now() + SHORTEST));
                    return;
                }
                Ok(Stepped::Until(None)) => {
                    self.open.remove(id);
                    return;
                }
                Err(error) => {
                    tracing::error!(rollout = %id, error = &error as &dyn std::error::Error, "rollout.step");
                    self.open.insert(id.clone(), clock::now() + AFTER_ERROR);
                    return;
                }
            }
        }
        self.open.insert(id.clone(), clock::now());
    }

    async fn step(&self, id: &RolloutId, now: Timestamp) -> Result<Stepped, StepError> {
        let documents = &self.parts.documents;
        let mut working = Working::new(documents, &*self.parts.roster);
        let Some(rollout) = working.rollout(id).await?.cloned() else { return Ok(Stepped::Until(None)) };
        let calendar = self.parts.calendar.current();
        let active = freeze::active(&calendar.periods, &rollout.plan.rollout.slot, now);
        let mut events = Vec::new();
        let over = rollout.is_terminal() && rollout.wake.is_none();
        if !over && active != rollout.freeze {
            events.push(Event::Freeze { active });
        }
        if !over && calendar.stopped != rollout.line {
            events.push(Event::Line { stopped: calendar.stopped.clone() });
        }
        // What holds everybody back comes before everything: a hand-out that was decided just now is none then.
        // After it, what was decided is carried out before anything new is decided.
        if let Some(pending) = rollout.pending.first().filter(|_| events.is_empty()) {
            return self.perform(working, &rollout, pending, now).await;
        }
        if rollout.wake.is_some_and(|wake| wake <= now) {
            events.push(Event::Tick);
        }
        if rollout.state == State::Ready
            && rollout.plan.rollout.on_overlap == OnOverlap::Queue
            && service::overlapping(documents, &*self.parts.roster, &rollout).await?.is_none()
        {
            events.push(Event::Start { by: rollout.by.clone() });
        }
        if events.is_empty() {
            let ready = rollout.state == State::Ready;
            return Ok(Stepped::Until(rollout.wake.or(ready.then(|| now + LONGEST))));
        }
        for event in &events {
            if let Err(refused) = working.apply(id, event, now).await? {
                tracing::error!(rollout = %id, %refused, "rollout.event");
            }
        }
        documents.store.commit(working.stage(Transaction::new())?).await?;
        self.looks.after(Aftermath { rollouts: vec![], ..working.aftermath() });
        Ok(Stepped::On)
    }

    /// Carries out what `working` has loaded with its rollout.
    async fn perform(
        &self,
        working: Working<'_>,
        rollout: &Rollout,
        pending: &Pending,
        now: Timestamp,
    ) -> Result<Stepped, StepError> {
        let RolloutParts { documents, audit, key, roster, .. } = &self.parts;
        let roster: &dyn Roster = &**roster;
        let (effect, mut devices) = (pending.id, Vec::new());
        let aftermath = match &pending.effect {
            Effect::WriteMembers => {
                // Another one may have begun since this was scheduled or approved.
                if service::has_to_wait(documents, roster, rollout).await? {
                    return Ok(Stepped::Until(Some(now + LONGEST)));
                }
                service::supersede(documents, roster, &self.looks, rollout, now).await?;
                members::write(documents, roster, rollout, effect, now).await?
            }
            hand_out @ Effect::HandOut { .. } => {
                let done = turns::hand_out(working, roster, rollout, effect, hand_out, now).await?;
                devices = done.devices;
                done.aftermath
            }
            Effect::Revert { before, at_most } => {
                let piece = (*before, *at_most);
                let done =
                    sweep::sweep(working, roster, rollout, effect, SweepKind::Revert, piece, now).await?;
                devices = done.devices;
                done.aftermath
            }
            Effect::Cancel { before, at_most } => {
                let piece = (*before, *at_most);
                let done =
                    sweep::sweep(working, roster, rollout, effect, SweepKind::Cancel, piece, now).await?;
                devices = done.devices;
                done.aftermath
            }
            Effect::Verdict { record } => {
                tracing::info!(rollout = %rollout.id, decision = ?record.decision, "rollout.verdict");
                verdicts::record(working, audit, key, rollout, effect, record, now).await?
            }
            Effect::Note { note } => verdicts::note(working, rollout, effect, note, now).await?,
        };
        self.looks.after(aftermath);
        self.send(&devices).await;
        Ok(Stepped::On)
    }

    /// Brings devices up to date. If the process dies here, the pass over all devices at the next start does it.
    async fn send(&self, devices: &[DeviceId]) {
        if !devices.is_empty() {
            self.parts.devices.order(Order::Devices(devices.to_vec())).await;
        }
    }

    /// Tells attempts whose deadline has come what time it is.
    async fn clocks(&self) {
        loop {
            let now = clock::now();
            let due = self.looks.0.deadlines.lock().due(now, CLOCKS);
            if due.is_empty() {
                return;
            }
            loop {
                match self.tell(&due, now).await {
                    Ok(()) => break,
                    Err(StoreError::StaleRevision { .. }) => {}
                    Err(error) => {
                        tracing::error!(%error, "attempt.clock");
                        let mut deadlines = self.looks.0.deadlines.lock();
                        for (rollout, device) in due {
                            deadlines.set(rollout, device, Some(now + AFTER_ERROR));
                        }
                        return;
                    }
                }
            }
        }
    }

    async fn tell(&self, due: &[(RolloutId, DeviceId)], now: Timestamp) -> Result<(), StoreError> {
        let mut working = Working::new(&self.parts.documents, &*self.parts.roster);
        for (rollout, device) in due {
            let said = match self.parts.roster.is_enrolled(device) {
                true => DeviceSaid::Clock { last_seen: self.parts.roster.last_seen(device) },
                false => DeviceSaid::LeftFleet,
            };
            working.hear(rollout, device, &said, now).await?;
        }
        if working.is_changed() {
            self.parts.documents.store.commit(working.stage(Transaction::new())?).await?;
        }
        self.looks.after(working.aftermath());
        Ok(())
    }

    /// Looks for devices that a dynamic last stage has to take in.
    async fn join(&mut self) {
        let now = clock::now();
        if self.joined <= now && now.since(self.joined) < JOIN_PASS {
            return;
        }
        self.joined = now;
        for id in self.open.keys() {
            let documents = &self.parts.documents;
            let done = async {
                let Some(found) = documents.rollouts.find_json(id.as_str()).await? else { return Ok(()) };
                let rollout = found.value;
                let open = matches!(rollout.state, State::Running | State::Completed { .. });
                let is_dynamic = rollout.plan.stages.last().is_some_and(|stage| stage.dynamic);
                if !open || !is_dynamic {
                    return Ok(());
                }
                if let Some(told) = members::join(documents, &*self.parts.roster, &rollout, now).await? {
                    self.looks.after(told);
                }
                Ok::<_, StoreError>(())
            };
            if let Err(error) = done.await {
                tracing::warn!(rollout = %id, %error, "rollout.join");
            }
        }
    }
}

/// Why a step did not happen.
#[derive(Debug, thiserror::Error)]
enum StepError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("could not record a verdict")]
    Verdict { source: verdicts::VerdictError },
}

impl From<verdicts::VerdictError> for StepError {
    fn from(error: verdicts::VerdictError) -> Self {
        match error {
            verdicts::VerdictError::Store(error) => Self::Store(error),
            source @ verdicts::VerdictError::Sign { .. } => Self::Verdict { source },
        }
    }
}
