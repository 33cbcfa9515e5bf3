//! Which waiting job a free worker takes next, alone or with others of the same kind. Pure: time is passed in.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

/// 1 goes first, 10 last; those of one priority go in the order they came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Priority(u8);

impl Priority {
    pub const FIRST: u8 = 1;
    pub const LAST: u8 = 10;
    /// As a client writes it; 0 asks for the usual one. `None` beyond [`Self::LAST`].
    pub fn of(number: u64) -> Option<Self> {
        match u8::try_from(number) {
            Ok(0) => Some(Self::default()),
            Ok(number @ Self::FIRST..=Self::LAST) => Some(Self(number)),
            _ => None,
        }
    }
}
impl Default for Priority {
    fn default() -> Self {
        Self(5)
    }
}

/// How requests for one model may run together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Batching {
    /// Most rows of one run.
    pub rows: usize,
    /// Longest time that the first of them waits for others while a worker is free.
    pub delay: Duration,
}

/// What a job asks of the queue.
#[derive(Clone, Copy, Debug, Default)]
pub struct Order {
    pub priority: Priority,
    /// Nobody waits for the answer after it.
    pub deadline: Option<Instant>,
    /// `None`: it runs alone.
    pub batching: Option<Batching>,
    /// Its rows.
    pub rows: usize,
}

/// One job in the queue.
#[derive(Debug)]
pub(super) struct Waiting<J> {
    pub job: J,
    pub order: Order,
    pub queued: Instant,
}

/// In the order of their turns.
#[derive(Debug)]
pub(super) struct Queue<J>(VecDeque<Waiting<J>>);

/// What is to be done now.
#[derive(Debug)]
pub(super) enum Next<J> {
    /// One run. All of them fit each other; usually it is one.
    Run(Vec<Waiting<J>>),
    /// Nothing before then, unless another job comes.
    Hold(Instant),
    Nothing,
}

impl<J> Queue<J> {
    pub(super) fn new() -> Self {
        Self(VecDeque::new())
    }
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }
    pub(super) fn retain(&mut self, keep: impl Fn(&J) -> bool) {
        self.0.retain(|waiting| keep(&waiting.job));
    }

    pub(super) fn push(&mut self, waiting: Waiting<J>) {
        let at = self.0.partition_point(|other| other.order.priority <= waiting.order.priority);
        self.0.insert(at, waiting);
    }

    /// Takes the last job out if it is less urgent than `priority`.
    pub(super) fn give_way(&mut self, priority: Priority) -> Option<Waiting<J>> {
        match self.0.back() {
            Some(last) if last.order.priority > priority => self.0.pop_back(),
            _ => None,
        }
    }

    /// The job whose turn it is, with those that may join it. `fits`: whether two may run together. `holds`:
    /// whether batches may wait for more; `lasts`: how long a run takes, so that nobody is held beyond what
    /// leaves time for it. Jobs that came too late are in `late`.
    ///
    /// One look at each job per batch that is held; where nothing is held, at those of one batch.
    pub(super) fn take(
        &mut self,
        now: Instant,
        lasts: Duration,
        holds: bool,
        fits: impl Fn(&J, &J) -> bool,
        late: &mut Vec<Waiting<J>>,
    ) -> Next<J> {
        let mut wake: Option<Instant> = None;
        let mut held: Vec<usize> = Vec::new();
        let mut first = 0;
        while first < self.0.len() {
            if held.contains(&first) {
                first += 1;
                continue;
            }
            if self.0[first].order.deadline.is_some_and(|deadline| deadline <= now) {
                late.extend(self.0.remove(first));
                held.iter_mut().filter(|at| **at > first).for_each(|at| *at -= 1);
                continue;
            }
            let Some(batching) = self.0[first].order.batching else {
                return self.run(&[first]);
            };
            let (members, rows) = self.members(first, batching.rows, now, &fits);
            let ready = match holds && rows < batching.rows {
                false => None,
                true => {
                    let oldest = members.iter().map(|at| self.0[*at].queued).min();
                    let deadline = members.iter().filter_map(|at| self.0[*at].order.deadline).min();
                    let leaves_time = deadline.and_then(|deadline| deadline.checked_sub(lasts));
                    let full = oldest.and_then(|oldest| oldest.checked_add(batching.delay));
                    full.into_iter().chain(leaves_time).min().filter(|ready| *ready > now)
                }
            };
            match ready {
                None => return self.run(&members),
                Some(at) => wake = Some(wake.map_or(at, |wake| wake.min(at))),
            }
            held.extend(members);
            first += 1;
        }
        wake.map_or(Next::Nothing, Next::Hold)
    }

    /// The job at `first` and those behind it that fit, up to `most` rows in all; and their rows.
    fn members(
        &self,
        first: usize,
        most: usize,
        now: Instant,
        fits: &impl Fn(&J, &J) -> bool,
    ) -> (Vec<usize>, usize) {
        let head = &self.0[first];
        let (mut members, mut rows) = (vec![first], head.order.rows);
        for (at, other) in self.0.iter().enumerate().skip(first + 1) {
            if rows >= most {
                break;
            }
            let alive = other.order.deadline.is_none_or(|deadline| deadline > now);
            let room = rows.saturating_add(other.order.rows) <= most;
            if alive && room && other.order.batching.is_some() && fits(&head.job, &other.job) {
                members.push(at);
                rows += other.order.rows;
            }
        }
        (members, rows)
    }

    /// Takes out the jobs at these places, which ascend.
    fn run(&mut self, places: &[usize]) -> Next<J> {
        let mut taken: Vec<_> = places.iter().rev().filter_map(|at| self.0.remove(*at)).collect();
        taken.reverse();
        Next::Run(taken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MS: Duration = Duration::from_millis(1);

    fn queue(jobs: &[(&'static str, u64, Order)], start: Instant) -> Queue<&'static str> {
        let mut queue = Queue::new();
        for (job, at, order) in jobs {
            queue.push(Waiting { job: *job, order: *order, queued: start + MS * *at as u32 });
        }
        queue
    }
    fn alike(a: &&str, b: &&str) -> bool {
        a.as_bytes()[0] == b.as_bytes()[0]
    }
    fn take(queue: &mut Queue<&'static str>, now: Instant) -> Result<Vec<&'static str>, Option<Instant>> {
        match queue.take(now, MS, true, alike, &mut Vec::new()) {
            Next::Run(jobs) => Ok(jobs.into_iter().map(|waiting| waiting.job).collect()),
            Next::Hold(at) => Err(Some(at)),
            Next::Nothing => Err(None),
        }
    }
    fn together(rows: usize, delay_ms: u32) -> Order {
        Order { batching: Some(Batching { rows, delay: MS * delay_ms }), rows: 1, ..Order::default() }
    }

    #[test]
    fn urgent_jobs_go_first_and_push_the_least_urgent_out() {
        let start = Instant::now();
        let at = |number| Order { priority: Priority::of(number).unwrap(), rows: 1, ..Order::default() };
        let mut queue = queue(&[("late", 0, at(9)), ("usual", 1, at(0)), ("first", 2, at(1))], start);
        assert!(queue.give_way(Priority::of(9).unwrap()).is_none());
        assert_eq!(queue.give_way(Priority::default()).unwrap().job, "late");
        assert_eq!(take(&mut queue, start), Ok(vec!["first"]));
        assert_eq!(take(&mut queue, start), Ok(vec!["usual"]));
        assert_eq!(take(&mut queue, start), Err(None));
        assert!(Priority::of(11).is_none() && Priority::of(u64::MAX).is_none());
    }

    #[test]
    fn a_batch_waits_for_its_delay_or_until_it_is_full_and_holds_nobody_else_up() {
        let start = Instant::now();
        let order = together(3, 5);
        let mut queue = queue(&[("a1", 0, order), ("b1", 1, Order { rows: 1, ..Order::default() })], start);
        assert_eq!(take(&mut queue, start + MS), Ok(vec!["b1"]));
        assert_eq!(take(&mut queue, start + MS), Err(Some(start + MS * 5)));
        queue.push(Waiting { job: "a2", order, queued: start + MS * 2 });
        assert_eq!(take(&mut queue, start + MS * 2), Err(Some(start + MS * 5)));
        queue.push(Waiting { job: "a3", order, queued: start + MS * 3 });
        queue.push(Waiting { job: "a4", order, queued: start + MS * 3 });
        assert_eq!(take(&mut queue, start + MS * 3), Ok(vec!["a1", "a2", "a3"]));
        assert_eq!(take(&mut queue, start + MS * 4), Err(Some(start + MS * 8)));
        assert_eq!(take(&mut queue, start + MS * 8), Ok(vec!["a4"]));
    }

    #[test]
    fn a_deadline_shortens_the_wait_and_what_is_too_late_is_not_run() {
        let start = Instant::now();
        let mut order = together(8, 50);
        order.deadline = Some(start + MS * 10);
        let mut queue = queue(&[("a1", 0, together(8, 50)), ("a2", 0, order)], start);
        assert_eq!(take(&mut queue, start), Err(Some(start + MS * 9)), "a run lasts 1 ms");
        let mut late = Vec::new();
        let next = queue.take(start + MS * 10, MS, true, alike, &mut late);
        assert!(matches!(next, Next::Hold(at) if at == start + MS * 50), "{next:?}");
        assert_eq!(late.into_iter().map(|waiting| waiting.job).collect::<Vec<_>>(), ["a2"]);
    }

    proptest! {
        #[test]
        fn everybody_runs_once_and_no_batch_is_too_large_or_mixed(
            jobs in prop::collection::vec((0u8..3, 1usize..5, 0u64..11, any::<bool>()), 0..40), most in 1usize..9,
        ) {
            let start = Instant::now();
            let mut queue = Queue::new();
            for (number, (kind, rows, priority, together)) in jobs.iter().enumerate() {
                let batching = together.then_some(Batching { rows: most, delay: MS });
                let order = Order { priority: Priority::of(*priority).unwrap(), batching, rows: *rows, deadline: None };
                queue.push(Waiting { job: (*kind, number), order, queued: start });
            }
            let mut seen = vec![false; jobs.len()];
            while let Next::Run(batch) = queue.take(start, MS, false, |a, b| a.0 == b.0, &mut Vec::new()) {
                prop_assert!(batch.iter().all(|w| w.job.0 == batch[0].job.0));
                let rows: usize = batch.iter().map(|w| w.order.rows).sum();
                prop_assert!(batch.len() == 1 || rows <= most && batch.iter().all(|w| w.order.batching.is_some()));
                for waiting in &batch {
                    prop_assert!(!std::mem::replace(&mut seen[waiting.job.1], true));
                }
            }
            prop_assert!(seen.iter().all(|seen| *seen) && queue.len() == 0);
        }
    }
}
