//! Faults on real processes: kill -9 at chosen moments, links that are slow or cut, a controller whose
//! disk belongs to somebody else.
//!
//! [`Stage`] is a controller process with its folder, [`Device`] an enrolled agent process with its
//! own; [`Throttle`] stands on the MQTT path between them; [`load`] asks agents and judges each answer.

pub mod load;
mod program;
pub mod source;
mod stage;
mod throttle;

pub use load::{Answer, KeepAlive, Oracle};
pub use program::{Program, agent_bin, controller_bin, failpoint_agent_bin};
pub use stage::{Device, Stage, until};
pub use throttle::Throttle;
