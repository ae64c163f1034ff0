//! Whole workloads: the program as its user runs it, with a real kernel and a real image.
//!
//! `STRATA_TEST_ASSETS` names the folder that `make assets` prepared. Without it the tests that boot say so and
//! pass; the others always run. Nothing here asserts how long something takes.
#![forbid(unsafe_code)]

mod bad_input;
mod boot;
mod build;
mod build_commands;
mod builds;
mod callers;
mod commands;
mod console;
mod container;
mod container_flags;
mod crashes;
mod debug;
mod detached;
mod docker;
mod docker_compose;
mod docker_events;
mod docker_files;
mod docker_limits;
mod docker_networks;
mod docker_recorded;
mod docker_sdk;
mod docker_system;
mod docker_tuning;
mod escape;
mod files;
mod fork;
mod full_disk;
mod image_verbs;
mod interrupted;
mod kernels;
mod killed_server;
mod kvm;
mod legacy_programs;
mod named_networks;
mod named_volumes;
mod names;
mod network;
mod network_rules;
mod rates;
mod registry;
mod run;
mod sandbox;
mod serve;
mod snapshot_command;
mod snapshots;
mod soak_api;
mod starts;
mod stores;
mod streams;
mod stress;
mod support;
mod templates;
mod terminal;
mod validation;
mod volumes;
