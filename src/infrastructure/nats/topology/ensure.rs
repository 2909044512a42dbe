//! Makes what is missing, tells what is different, and changes nothing that exists.

use async_nats::jetstream::{
    Context, ErrorCode,
    consumer::{Consumer, DeliverPolicy, IntoConsumerConfig, pull},
    context::{CreateStreamError, CreateStreamErrorKind, GetStreamErrorKind},
    stream::{self, ConsumerError, ConsumerErrorKind, RetentionPolicy},
};

use super::{
    ConsumerSpec, Topology,
    differences::{CONSUMER, Difference, STREAM, differences},
};

type Source = Box<dyn std::error::Error + Send + Sync>;

/// The topology could not be made.
#[derive(Debug, thiserror::Error)]
pub enum TopologyError {
    /// A subject of `ERP_SUBJECTS` belongs to another stream already.
    #[error(
        "the stream {stream} cannot be created: its subject {subject:?} overlaps the stream {other}; \
         name that stream in ERP_STREAM, or take the subject out of ERP_SUBJECTS"
    )]
    Overlap {
        /// The stream that is missing.
        stream: String,
        /// Its subject.
        subject: String,
        /// The stream that has it.
        other: String,
    },
    /// A consumer of our name pushes: it cannot be shared by workers that pull.
    #[error("the consumer {consumer} of the stream {stream} is a push consumer; delete it")]
    PushConsumer {
        /// The stream.
        stream: String,
        /// The consumer.
        consumer: String,
    },
    /// The server did not answer, or refused.
    #[error("{what} {name} could not be read or created")]
    Server {
        /// `the stream` or `the consumer`.
        what: &'static str,
        /// Its name.
        name: String,
        /// The client's error.
        source: Source,
    },
}

impl TopologyError {
    /// Whether trying again cannot help before somebody changes something.
    pub fn is_final(&self) -> bool {
        !matches!(self, Self::Server { .. })
    }

    pub(super) fn server(what: &'static str, name: &str, error: impl Into<Source>) -> Self {
        Self::Server {
            what,
            name: name.to_owned(),
            source: error.into(),
        }
    }
}

/// Where a consumer that was deleted had got to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::infrastructure::nats) struct ResumePoint {
    /// When its stream was created: another stream of the same name counts from one again.
    pub(in crate::infrastructure::nats) stream_created: i128,
    /// Everything up to here was settled.
    pub(in crate::infrastructure::nats) settled: u64,
}

impl Topology {
    /// Makes the streams and consumers that are missing. Where one exists with other settings,
    /// each difference is logged as a warning and answered, and it is left as it is.
    ///
    /// # Errors
    /// [`TopologyError`]; what was made until then stays, and doing it again goes on from there.
    pub async fn ensure(&self, context: &Context) -> Result<Vec<Difference>, TopologyError> {
        let mut found = self.ensure_streams(context).await?;
        for spec in self.consumers() {
            let consumer = find_or_create_consumer(context, spec, None).await?;
            let of = format!("consumer {} of {}", name_of(spec), spec.stream);
            let expected = (&spec.config).into_consumer_config();
            let actual = &consumer.cached_info().config;
            found.extend(differences(&of, &CONSUMER, &expected, actual));
        }
        for difference in &found {
            tracing::warn!(
                of = difference.of,
                field = difference.field,
                expected = difference.expected,
                actual = difference.actual,
                "a stream or consumer differs from what the worker would create; it is left as it is"
            );
        }
        Ok(found)
    }

    pub(in crate::infrastructure::nats) async fn ensure_streams(
        &self,
        context: &Context,
    ) -> Result<Vec<Difference>, TopologyError> {
        let mut found = Vec::new();
        for config in self.streams() {
            let stream = find_or_create_stream(context, config).await?;
            let of = format!("stream {}", config.name);
            let actual = &stream.cached_info().config;
            found.extend(differences(&of, &STREAM, config, actual));
        }
        Ok(found)
    }

    /// Finds or makes the consumer, and its stream where that is gone too, and says how far it is.
    /// One that has to be made again starts after what was settled by `resume`.
    pub(in crate::infrastructure::nats) async fn progress_of(
        &self,
        context: &Context,
        spec: &ConsumerSpec,
        resume: Option<&ResumePoint>,
    ) -> Result<ResumePoint, TopologyError> {
        let stream = match self.streams().into_iter().find(|s| s.name == spec.stream) {
            Some(config) => Some(find_or_create_stream(context, config).await?),
            None => None,
        };
        let stream = stream.as_ref().map(stream::Stream::cached_info);
        let created = stream.map_or(0, |info| info.created.unix_timestamp_nanos());
        // A work queue keeps nothing that is settled, and takes no consumer with a start.
        let keeps = stream.is_some_and(|info| info.config.retention == RetentionPolicy::Limits);
        let start = resume
            .filter(|resume| keeps && resume.stream_created == created)
            .map(|resume| resume.settled + 1);
        let consumer = find_or_create_consumer(context, spec, start).await?;
        Ok(ResumePoint {
            stream_created: created,
            settled: consumer.cached_info().ack_floor.stream_sequence,
        })
    }
}

async fn find_or_create_stream(
    context: &Context,
    config: &stream::Config,
) -> Result<stream::Stream, TopologyError> {
    let name = config.name.as_str();
    match context.get_stream(name).await {
        Ok(stream) => Ok(stream),
        Err(error) => match error.kind() {
            GetStreamErrorKind::JetStream(e) if e.error_code() == ErrorCode::STREAM_NOT_FOUND => {
                create_stream(context, config).await
            }
            _ => Err(TopologyError::server("the stream", name, error)),
        },
    }
}

async fn create_stream(
    context: &Context,
    config: &stream::Config,
) -> Result<stream::Stream, TopologyError> {
    let name = config.name.as_str();
    match context.create_stream(config).await {
        Ok(_) => tracing::info!(stream = name, "created a stream"),
        // Another worker was faster, and differs.
        Err(error) if code(&error) == Some(ErrorCode::STREAM_NAME_EXIST) => {}
        Err(error) if code(&error) == Some(ErrorCode::STREAM_SUBJECT_OVERLAP) => {
            return Err(match overlapping(context, config).await {
                Some((subject, other)) => TopologyError::Overlap {
                    stream: name.to_owned(),
                    subject,
                    other,
                },
                None => TopologyError::server("the stream", name, error),
            });
        }
        Err(error) => return Err(TopologyError::server("the stream", name, error)),
    }
    // Read back: an old server takes settings that it does not know.
    let created = context.get_stream(name).await;
    created.map_err(|error| TopologyError::server("the stream", name, error))
}

fn code(error: &CreateStreamError) -> Option<ErrorCode> {
    match error.kind() {
        CreateStreamErrorKind::JetStream(error) => Some(error.error_code()),
        _ => None,
    }
}

/// Which of our subjects another stream has, and which stream.
async fn overlapping(context: &Context, config: &stream::Config) -> Option<(String, String)> {
    for subject in &config.subjects {
        if let Ok(other) = context.stream_by_subject(subject).await {
            return Some((subject.clone(), other));
        }
    }
    None
}

async fn find_or_create_consumer(
    context: &Context,
    spec: &ConsumerSpec,
    start: Option<u64>,
) -> Result<Consumer<pull::Config>, TopologyError> {
    let name = name_of(spec);
    let found = context.get_consumer_from_stream(name, &spec.stream).await;
    match found {
        Ok(consumer) => Ok(consumer),
        Err(error) if is_missing(&error) => create_consumer(context, spec, start).await,
        Err(error) => Err(consumer_error(spec, error)),
    }
}

async fn create_consumer(
    context: &Context,
    spec: &ConsumerSpec,
    start: Option<u64>,
) -> Result<Consumer<pull::Config>, TopologyError> {
    let ConsumerSpec { stream, config } = spec;
    let name = name_of(spec);
    let mut config = config.clone();
    if let Some(start_sequence) = start {
        config.deliver_policy = DeliverPolicy::ByStartSequence { start_sequence };
    }
    // Strictly: what another worker made meanwhile, perhaps with another start, is not changed.
    let created = context
        .create_consumer_strict_on_stream(config, stream)
        .await;
    let found = context.get_consumer_from_stream(name, stream).await;
    match (created, found) {
        (Ok(_), Ok(consumer)) => {
            tracing::info!(stream, consumer = name, start, "created a consumer");
            Ok(consumer)
        }
        (Err(_), Ok(consumer)) => Ok(consumer),
        (Err(error), Err(_)) => Err(TopologyError::server("the consumer", name, error)),
        (Ok(_), Err(error)) => Err(consumer_error(spec, error)),
    }
}

fn name_of(spec: &ConsumerSpec) -> &str {
    spec.config.durable_name.as_deref().unwrap_or_default()
}

fn is_missing(error: &ConsumerError) -> bool {
    matches!(error.kind(), ConsumerErrorKind::JetStream(e) if e.error_code() == ErrorCode::CONSUMER_NOT_FOUND)
}

fn consumer_error(spec: &ConsumerSpec, error: ConsumerError) -> TopologyError {
    let consumer = name_of(spec).to_owned();
    if matches!(error.kind(), ConsumerErrorKind::InvalidConsumerType) {
        let stream = spec.stream.clone();
        return TopologyError::PushConsumer { stream, consumer };
    }
    TopologyError::server("the consumer", &consumer, error)
}
