//! One signed desired state per device: intents in, one document with one generation out.
//!
//! [`compose()`] and [`decide()`] are pure; [`DesiredStates`] loads, asks them, signs and saves by
//! compare-and-set. Several parts of the controller may want something of a device (an assignment by
//! hand, a rollout, settings): each writes its own [`Intent`], nobody writes the desired state itself.

mod compose;
mod decide;
mod intent;
mod states;

pub use compose::compose;
pub use decide::{Decision, Reason, decide};
pub use intent::{INTENT, Intent, intent_id};
pub use states::{
    DESIRED, DesiredError, DesiredRecord, DesiredStates, Outgoing, SettingsSource, stored_generation,
};
