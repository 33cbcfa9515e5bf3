//! The MQTT session with the controller.
