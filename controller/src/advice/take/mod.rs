//! Pure: what taking a piece of advice comes to: a list of typed steps, from the finding and what is known now.
//!
//! Steps that need no hands (a rule of settings, a rollout, a bundle with another baseline, a labelling queue) are
//! carried out by [`crate::taking`]. What no setting and no service of the controller can do is answered as
//! [`Doing::ByHand`] with the lines to change: honest instead of half done.

mod bundle;
mod plan;
mod policy;
mod step;
#[cfg(test)]
pub(crate) mod tests;
mod words;

pub use bundle::{Made, Seen, Source, Unable, make};
pub use plan::{State, plan, queue};
pub use step::{Change, Doing, QueueFilter, Step};
pub use words::select_of;
