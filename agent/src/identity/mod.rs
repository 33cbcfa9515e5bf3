//! Who this device is: its key, its certificate, its first contact.
