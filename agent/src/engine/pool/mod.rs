//! Worker threads that run models, so that no inference ever blocks the async world.
//!
//! A bounded queue in front: when it is full the caller hears so at once, with an estimate of when to
//! come back, instead of waiting for an answer that comes too late; only a more urgent job takes the
//! place of the least urgent one. Jobs that fit each other may run as one ([`Batching`]). A panic in a
//! model costs that one job. A future that is dropped before its job starts takes the job with it.

pub(in crate::engine) mod batch;
mod queue;

pub use batch::{is_batched, rows_together};
pub use queue::{Batching, Order, Priority};

use super::{
    LoadedModel, RunError,
    aside::{self, Aside},
    panic_text,
};
use edgefleet_shared::tensor::Tensor;
use parking_lot::{Condvar, Mutex};
use queue::{Next, Queue, Waiting};
use std::{
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};
use tokio::sync::oneshot;

/// Shortest and longest advice in [`PoolError::QueueFull`]: below, a client would spin; above, it
/// would give up on a device that is merely busy.
const RETRY_AFTER: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(30));

/// Outputs of one run and where its time went.
#[derive(Debug)]
pub struct Answer {
    /// In the order of the interface.
    pub outputs: Vec<Tensor>,
    /// From submission until a worker took the job.
    pub queue: Duration,
    /// Inside the model.
    pub infer: Duration,
    /// Of other requests, run in the same pass.
    pub shared_rows: usize,
    /// Whether the pass is counted with this one; one of those that shared it is.
    pub leads: bool,
    /// What the model noticed of these rows.
    pub aside: Aside,
}

/// Why a job has no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PoolError {
    #[error("all {bound} places of the inference queue are taken; try again in {} ms", retry_after.as_millis())]
    QueueFull { bound: usize, retry_after: Duration },
    #[error("no inference thread was free in time")]
    TooLate,
    #[error("inference has stopped: the agent is shutting down")]
    Stopped,
    #[error(transparent)]
    Run(#[from] RunError),
}

/// A fixed set of threads behind one bounded queue. Dropped, it takes no more; the threads end by
/// themselves, and a model that hangs does not hold up whoever drops it.
pub struct WorkerPool {
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

struct Shared {
    state: Mutex<State>,
    wake: Condvar,
    bound: usize,
    workers: usize,
    /// Moving mean of the time inside models, in nanoseconds; 0 until the first run.
    mean_nanos: AtomicU64,
}

struct State {
    queue: Queue<Job>,
    open: bool,
}

struct Job {
    model: Arc<dyn LoadedModel>,
    inputs: Vec<Tensor>,
    answer: oneshot::Sender<Result<Answer, PoolError>>,
}

/// The same model, and inputs that differ in their rows only.
fn fit(a: &Job, b: &Job) -> bool {
    Arc::ptr_eq(&a.model, &b.model) && !b.answer.is_closed() && batch::fits(&a.inputs, &b.inputs)
}

impl WorkerPool {
    /// Starts `threads` workers (at least one). `queue_bound` jobs may wait besides those that run.
    ///
    /// # Errors
    /// The system refused a thread.
    pub fn new(threads: usize, queue_bound: usize) -> io::Result<Self> {
        let workers = threads.max(1);
        let shared = Arc::new(Shared {
            state: Mutex::new(State { queue: Queue::new(), open: true }),
            wake: Condvar::new(),
            bound: queue_bound.max(1),
            workers,
            mean_nanos: AtomicU64::new(0),
        });
        let pool = Self { shared, threads: Mutex::new(Vec::new()) };
        for number in 0..workers {
            let shared = pool.shared.clone();
            let name = format!("infer-{number}");
            pool.threads.lock().push(std::thread::Builder::new().name(name).spawn(move || shared.work())?);
        }
        Ok(pool)
    }

    /// Queues one run at once, before the future is first polled. As [`Self::run_as`], in the usual order.
    ///
    /// # Errors
    /// [`PoolError`]; the future never panics.
    pub fn run(
        &self,
        model: Arc<dyn LoadedModel>,
        inputs: Vec<Tensor>,
    ) -> impl Future<Output = Result<Answer, PoolError>> + Send + use<> {
        self.run_as(Order::default(), model, inputs)
    }

    /// Queues one run at once, with others if `order` allows it and the model takes several rows.
    ///
    /// # Errors
    /// [`PoolError`]; the future never panics.
    pub fn run_as(
        &self,
        order: Order,
        model: Arc<dyn LoadedModel>,
        inputs: Vec<Tensor>,
    ) -> impl Future<Output = Result<Answer, PoolError>> + Send + use<> {
        let queued = self.submit(order, model, inputs);
        // What was refused waits nowhere: a full queue is not searched for it.
        let waiting = Abandoned(queued.is_ok().then(|| self.shared.clone()));
        async move {
            let answer = queued?.await;
            waiting.disarm();
            answer.unwrap_or(Err(PoolError::Stopped))
        }
    }

    fn submit(
        &self,
        mut order: Order,
        model: Arc<dyn LoadedModel>,
        inputs: Vec<Tensor>,
    ) -> Result<oneshot::Receiver<Result<Answer, PoolError>>, PoolError> {
        let (answer, receiver) = oneshot::channel();
        match batch::rows(&inputs) {
            Some(rows) => order.rows = rows,
            None => order.batching = None,
        }
        let job = Waiting { job: Job { model, inputs, answer }, order, queued: Instant::now() };
        let mut state = self.shared.state.lock();
        if !state.open {
            return Err(PoolError::Stopped);
        }
        if state.queue.len() >= self.shared.bound {
            // Abandoned jobs hold places only until someone needs them.
            state.queue.retain(|job| !job.answer.is_closed());
        }
        if state.queue.len() >= self.shared.bound {
            let full = PoolError::QueueFull {
                bound: self.shared.bound,
                retry_after: self.shared.retry_after(state.queue.len()),
            };
            match state.queue.give_way(order.priority) {
                None => return Err(full),
                Some(less_urgent) => drop(less_urgent.job.answer.send(Err(full))),
            }
        }
        state.queue.push(job);
        drop(state);
        self.shared.wake.notify_one();
        Ok(receiver)
    }

    /// Jobs that wait for a worker.
    pub fn waiting(&self) -> usize {
        self.shared.state.lock().queue.len()
    }

    /// Refuses new jobs, finishes those queued, ends the workers. Blocks until then; idempotent.
    pub fn shutdown(&self) {
        self.close();
        let threads = std::mem::take(&mut *self.threads.lock());
        for thread in threads {
            // A worker cannot panic: every job runs under catch_unwind.
            let _ = thread.join();
        }
    }
}

/// Takes jobs that nobody waits for any more out of the queue, and what they hold in memory with them.
struct Abandoned(Option<Arc<Shared>>);
impl Abandoned {
    fn disarm(mut self) {
        self.0 = None;
    }
}
impl Drop for Abandoned {
    fn drop(&mut self) {
        if let Some(shared) = &self.0 {
            shared.state.lock().queue.retain(|job| !job.answer.is_closed());
        }
    }
}

impl WorkerPool {
    fn close(&self) {
        self.shared.state.lock().open = false;
        self.shared.wake.notify_all();
    }
}

impl Drop for WorkerPool {
    fn drop(&mut self) {
        self.close();
    }
}

impl Shared {
    fn work(&self) {
        while let Some(mut jobs) = self.next() {
            jobs.retain(|waiting| !waiting.job.answer.is_closed());
            if jobs.len() > 1 {
                jobs = match self.run_together(jobs) {
                    Ok(()) => continue,
                    Err(apart) => apart,
                };
            }
            jobs.into_iter().for_each(|waiting| self.run_alone(waiting));
        }
    }

    fn run_alone(&self, waiting: Waiting<Job>) {
        let Waiting { job, queued, .. } = waiting;
        let started = Instant::now();
        let queue = started - queued;
        let (result, aside) = aside::collect(|| run(&*job.model, &job.inputs));
        let infer = started.elapsed();
        self.learn(infer);
        let answer = |outputs| Answer { outputs, queue, infer, shared_rows: 0, leads: true, aside };
        // Nobody waits any more: nothing to tell.
        let _ = job.answer.send(result.map(answer).map_err(PoolError::Run));
    }

    /// One pass for all. Gives them back if that is not possible: who is at fault shows when each runs alone,
    /// and the others have their answers.
    fn run_together(&self, jobs: Vec<Waiting<Job>>) -> Result<(), Vec<Waiting<Job>>> {
        let Some(model) = jobs.first().map(|waiting| waiting.job.model.clone()) else { return Ok(()) };
        let started = Instant::now();
        let requests: Vec<&[Tensor]> = jobs.iter().map(|waiting| waiting.job.inputs.as_slice()).collect();
        let rows: Vec<usize> = jobs.iter().map(|waiting| waiting.order.rows).collect();
        let (outputs, aside) = aside::collect(|| run(&*model, &batch::join(&requests)?).ok());
        let Some(answers) = outputs.and_then(|outputs| batch::split(&outputs, &rows)) else {
            return Err(jobs);
        };
        let infer = started.elapsed();
        self.learn(infer / u32::try_from(jobs.len()).unwrap_or(u32::MAX));
        let total: usize = rows.iter().sum();
        let mut first = 0;
        for (number, (waiting, outputs)) in jobs.into_iter().zip(answers).enumerate() {
            let answer = Answer {
                outputs,
                queue: started - waiting.queued,
                infer,
                shared_rows: total - waiting.order.rows,
                leads: number == 0,
                aside: aside.part(first, waiting.order.rows),
            };
            first += waiting.order.rows;
            let _ = waiting.job.answer.send(Ok(answer));
        }
        Ok(())
    }

    fn next(&self) -> Option<Vec<Waiting<Job>>> {
        let mut late = Vec::new();
        let mut state = self.state.lock();
        loop {
            let lasts = Duration::from_nanos(self.mean_nanos.load(Ordering::Relaxed));
            let holds = state.open;
            let next = state.queue.take(Instant::now(), lasts, holds, fit, &mut late);
            for waiting in late.drain(..) {
                let _ = waiting.job.answer.send(Err(PoolError::TooLate));
            }
            match next {
                Next::Run(jobs) => return Some(jobs),
                Next::Hold(until) => drop(self.wake.wait_until(&mut state, until)),
                Next::Nothing if !state.open => return None,
                Next::Nothing => self.wake.wait(&mut state),
            }
        }
    }

    /// Weighs the newest run 1/8. Workers may overwrite each other's step: it is an estimate.
    fn learn(&self, infer: Duration) {
        let new = u64::try_from(infer.as_nanos()).unwrap_or(u64::MAX);
        let old = self.mean_nanos.load(Ordering::Relaxed);
        let mean = if old == 0 { new } else { old - old / 8 + new / 8 };
        self.mean_nanos.store(mean, Ordering::Relaxed);
    }

    /// Time until the queue has been worked off once.
    fn retry_after(&self, waiting: usize) -> Duration {
        let mean = self.mean_nanos.load(Ordering::Relaxed);
        let nanos = mean.saturating_mul(waiting as u64 + 1) / self.workers as u64;
        Duration::from_nanos(nanos).clamp(RETRY_AFTER.0, RETRY_AFTER.1)
    }
}

/// One pass, whatever the engine does.
fn run(model: &dyn LoadedModel, inputs: &[Tensor]) -> Result<Vec<Tensor>, RunError> {
    catch_unwind(AssertUnwindSafe(|| model.run(inputs))).unwrap_or_else(|panic| {
        Err(RunError::Engine(format!("the engine panicked: {}", panic_text(&*panic))))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Barrier, atomic::AtomicUsize};

    /// Waits at `gate` if it has one, then counts; panics on request.
    struct Fake {
        gate: Option<Arc<Barrier>>,
        runs: AtomicUsize,
        panics: bool,
    }
    impl Fake {
        fn new(gate: Option<Arc<Barrier>>, panics: bool) -> Arc<Self> {
            Arc::new(Self { gate, runs: AtomicUsize::new(0), panics })
        }
        fn runs(&self) -> usize {
            self.runs.load(Ordering::SeqCst)
        }
    }
    impl LoadedModel for Fake {
        fn run(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>, RunError> {
            if let Some(gate) = &self.gate {
                gate.wait(); // taken
                gate.wait(); // released
            }
            assert!(!self.panics, "told to");
            self.runs.fetch_add(1, Ordering::SeqCst);
            Ok(inputs.to_vec())
        }
    }

    #[tokio::test]
    async fn a_full_queue_answers_at_once_and_a_dropped_future_takes_its_job_along() {
        let pool = WorkerPool::new(1, 2).unwrap();
        let gate = Arc::new(Barrier::new(2));
        let (slow, quick) = (Fake::new(Some(gate.clone()), false), Fake::new(None, false));
        let running = pool.run(slow.clone(), vec![]);
        gate.wait(); // the worker is inside the model now
        let dropped = pool.run(quick.clone(), vec![]);
        let kept = pool.run(quick.clone(), vec![]);
        let refused = pool.run(quick.clone(), vec![]).await;
        assert!(matches!(refused, Err(PoolError::QueueFull { bound: 2, .. })), "{refused:?}");
        drop(dropped);
        let takes_the_free_place = pool.run(quick.clone(), vec![]);
        gate.wait();
        running.await.unwrap();
        kept.await.unwrap();
        takes_the_free_place.await.unwrap();
        assert_eq!((slow.runs(), quick.runs()), (1, 2));
    }

    #[tokio::test]
    async fn a_panic_costs_one_job_and_the_worker_goes_on() {
        let pool = WorkerPool::new(1, 8).unwrap();
        let error = pool.run(Fake::new(None, true), vec![]).await.unwrap_err();
        assert_eq!(error, PoolError::Run(RunError::Engine("the engine panicked: told to".into())));
        let answer = pool.run(Fake::new(None, false), vec![]).await.unwrap();
        assert!(answer.outputs.is_empty());
    }

    #[tokio::test]
    async fn shutdown_finishes_what_was_queued_and_refuses_the_rest() {
        let pool = WorkerPool::new(2, 64).unwrap();
        let model = Fake::new(None, false);
        let jobs: Vec<_> = (0..64).map(|_| pool.run(model.clone(), vec![])).collect();
        let accepted = futures::future::join_all(jobs);
        pool.shutdown();
        let served = accepted.await.into_iter().filter(Result::is_ok).count();
        assert_eq!(served, model.runs());
        assert!(served > 0);
        assert_eq!(pool.run(model, vec![]).await.unwrap_err(), PoolError::Stopped);
    }

    fn row(first: u8) -> Vec<Tensor> {
        vec![
            Tensor::new("x", edgefleet_shared::tensor::Datatype::Uint8, vec![1, 1], vec![first].into())
                .unwrap(),
        ]
    }
    fn together(rows: usize) -> Order {
        Order { batching: Some(Batching { rows, delay: Duration::ZERO }), ..Order::default() }
    }

    #[tokio::test]
    async fn requests_that_wait_together_run_together_and_each_gets_its_own_rows() {
        let pool = WorkerPool::new(1, 64).unwrap();
        let gate = Arc::new(Barrier::new(2));
        let blocked = pool.run(Fake::new(Some(gate.clone()), false), vec![]);
        gate.wait();
        let model = Fake::new(None, false);
        let jobs: Vec<_> = (0..7).map(|n| pool.run_as(together(4), model.clone(), row(n))).collect();
        let urgent = Order { priority: Priority::of(1).unwrap(), ..Order::default() };
        let alone = pool.run_as(urgent, model.clone(), row(99));
        gate.wait();
        blocked.await.unwrap();
        for (n, answer) in futures::future::join_all(jobs).await.into_iter().enumerate() {
            let answer = answer.unwrap();
            assert_eq!(answer.outputs, row(n as u8));
            assert_eq!((answer.shared_rows, answer.leads), (if n < 4 { 3 } else { 2 }, n % 4 == 0), "{n}");
        }
        assert_eq!(alone.await.unwrap().shared_rows, 0);
        assert_eq!(model.runs(), 3);
    }

    /// Refuses what holds a 13, and batches that do.
    struct Superstitious(AtomicUsize);
    impl LoadedModel for Superstitious {
        fn run(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>, RunError> {
            self.0.fetch_add(1, Ordering::SeqCst);
            match inputs[0].data().contains(&13) {
                true => Err(RunError::BadInput("13".into())),
                false => Ok(inputs.to_vec()),
            }
        }
    }

    #[tokio::test]
    async fn one_bad_request_of_a_batch_costs_only_itself() {
        let pool = WorkerPool::new(1, 64).unwrap();
        let gate = Arc::new(Barrier::new(2));
        let blocked = pool.run(Fake::new(Some(gate.clone()), false), vec![]);
        gate.wait();
        let model = Arc::new(Superstitious(AtomicUsize::new(0)));
        let jobs: Vec<_> = (12..15).map(|n| pool.run_as(together(8), model.clone(), row(n))).collect();
        gate.wait();
        blocked.await.unwrap();
        let answers = futures::future::join_all(jobs).await;
        assert_eq!(answers[1].as_ref().unwrap_err(), &PoolError::Run(RunError::BadInput("13".into())));
        assert!(answers[0].is_ok() && answers[2].is_ok());
        assert_eq!(model.0.load(Ordering::SeqCst), 4);
    }

    #[tokio::test]
    async fn an_urgent_job_takes_the_place_of_a_usual_one_and_a_late_one_is_told_so() {
        let pool = WorkerPool::new(1, 1).unwrap();
        let gate = Arc::new(Barrier::new(2));
        let blocked = pool.run(Fake::new(Some(gate.clone()), false), vec![]);
        gate.wait();
        let model = Fake::new(None, false);
        let usual = pool.run(model.clone(), vec![]);
        let order = Order {
            priority: Priority::of(1).unwrap(),
            deadline: Some(Instant::now() + Duration::from_millis(1)),
            ..Order::default()
        };
        let urgent = pool.run_as(order, model.clone(), vec![]);
        assert!(matches!(usual.await, Err(PoolError::QueueFull { bound: 1, .. })));
        while Instant::now() < order.deadline.unwrap() {
            std::hint::spin_loop();
        }
        gate.wait();
        blocked.await.unwrap();
        assert_eq!(urgent.await.unwrap_err(), PoolError::TooLate);
        assert_eq!(model.runs(), 0);
    }
}
