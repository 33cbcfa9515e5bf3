//! Watches what is served: windows of counts and latencies, joined labels.
