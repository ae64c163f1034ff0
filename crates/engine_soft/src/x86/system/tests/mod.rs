//! Tests of the system half, on a core with flat memory.
