//! Pairs of sidecars over real sockets and real TLS: what the data path promises.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod changes;
mod denials;
mod endpoints;
mod ends;
mod extended_connect;
mod grpc_apps;
mod identities;
mod identity_files;
mod interim;
mod introductions;
mod leavers;
mod messages;
mod next_hops;
mod raw_tcp;
mod readings;
mod requests;
mod shares;
mod slow_readers;
mod streams;
mod support;
mod taken_back;
mod traces;
mod uploads;
mod upstream;
mod workers;
