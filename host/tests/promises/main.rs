//! The promises, each proved on a real nats-server with the real modules. A file per promise; a test's name is the sentence.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    missing_docs,
    unreachable_pub
)]

mod alerts;
mod bad_use;
mod chaos;
mod crash_points;
mod dashboard;
mod dev;
mod docs;
mod doctor;
mod generations;
mod going_back;
mod harness;
mod hostile;
mod http;
mod journal;
mod kill_storm;
mod lag;
mod lag_check;
mod lag_numbers;
mod lag_oracle;
mod lanes;
mod limits;
mod logs;
mod loss;
mod metrics;
mod micro;
mod new;
mod parking;
mod parking_by_hand;
mod parking_crash;
mod parking_paced;
mod parking_restored;
mod parking_sagas;
mod parking_window;
mod permissions;
mod placement;
mod promotion;
mod publish;
mod real_logs;
mod rebuild;
mod rehearsal;
mod reload;
mod restored;
mod saga_cli;
mod sagas;
mod sagas_answers;
mod sagas_cases;
mod sagas_crash;
mod sagas_generations;
mod sagas_logs;
mod sagas_refused;
mod sagas_storm;
mod sagas_time;
mod sagas_undo;
mod services;
mod shadow;
mod shop;
mod taken_back;
mod tls;
mod top;
mod traces;
mod wanted;
mod zombie;
