//! What a model noticed on the way besides its answer: where its steps' time went, what decoded pictures look like.
//!
//! Engines answer with tensors and nothing else. Who wants to know more runs the model inside [`collect`]; the steps
//! around the model, which run in the same thread, leave it there. Elsewhere (golden samples, trials of engines)
//! nobody asks and nothing is kept.

use crate::pipeline::Pictures;
use std::{cell::RefCell, time::Duration};

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Aside {
    /// Time in the steps before and after the model; absent without steps.
    pub steps: Option<Steps>,
    pub pictures: Vec<Pictures>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Steps {
    pub pre: Duration,
    pub post: Duration,
}

thread_local! {
    static ASIDE: RefCell<Option<Aside>> = const { RefCell::new(None) };
}

/// Runs `work` and takes what it left; of a panic nothing remains.
pub fn collect<T>(work: impl FnOnce() -> T) -> (T, Aside) {
    struct Forget;
    impl Drop for Forget {
        fn drop(&mut self) {
            ASIDE.take();
        }
    }
    let _forget = Forget;
    ASIDE.set(Some(Aside::default()));
    let done = work();
    (done, ASIDE.take().unwrap_or_default())
}

/// Leaves it for whoever collects; the last word of one run counts.
pub(super) fn leave(aside: Aside) {
    ASIDE.with_borrow_mut(|place| {
        if let Some(place) = place {
            *place = aside;
        }
    });
}

impl Aside {
    /// What concerns `rows` rows from `first` on, where several requests shared a run.
    pub(super) fn part(&self, first: usize, rows: usize) -> Self {
        let part = |pictures: &Pictures| Pictures {
            step: pictures.step,
            appearances: pictures.appearances.iter().skip(first).take(rows).copied().collect(),
        };
        Self { steps: self.steps, pictures: self.pictures.iter().map(part).collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_who_asks_is_told_and_only_of_this_run() {
        let told = || {
            let pictures = vec![Pictures { step: 1, appearances: vec![[1.0; 6], [2.0; 6], [3.0; 6]] }];
            leave(Aside { steps: None, pictures });
        };
        told();
        assert_eq!(collect(|| 7), (7, Aside::default()));
        let ((), aside) = collect(told);
        assert_eq!(aside.part(1, 2).pictures[0].appearances, [[2.0; 6], [3.0; 6]]);
        std::panic::catch_unwind(|| collect(|| -> () { panic!("as models do") })).unwrap_err();
        told();
        assert_eq!(ASIDE.take(), None);
    }
}
