//! Why the authority says no: one enum, and one place that makes it into the caller's answer, the audit's word and the
//! metric's label, so that the three cannot disagree.
//!
//! What a token's presenter learns does not tell an unknown token from an expired or a spent one; audit and log do.

use countersign_identity::SpiffeId;
use tonic::{Code, Status};

use crate::authority::SignError;
use crate::csr::CsrError;
use crate::store::StoreError;

/// Why a call is refused.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refusal {
    /// The enrolment key stands for no workload.
    #[error("the enrolment key is not bound to a workload; attest first")]
    NotBound,
    /// The message carries no evidence.
    #[error("the request carries no evidence")]
    NoEvidence,
    /// No such token was ever made, or it is not even of the form.
    #[error("the join token is unknown")]
    TokenUnknown,
    /// The token's time is over.
    #[error("the join token for {id} has expired")]
    TokenExpired {
        /// Whom it was for.
        id: SpiffeId,
        /// SHA-256 of it.
        digest: [u8; 32],
    },
    /// Its registration ended, or an agent that used it was evicted.
    #[error("the join token for {id} was revoked")]
    TokenRevoked {
        /// Whom it was for.
        id: SpiffeId,
        /// SHA-256 of it.
        digest: [u8; 32],
    },
    /// Other keys have used it as often as it may be used: it was copied or stolen.
    #[error("the join token for {id} was used by another key already")]
    TokenReused {
        /// Whom it was for.
        id: SpiffeId,
        /// SHA-256 of it.
        digest: [u8; 32],
    },
    /// The registration that the key was bound to ended since; it may be there again.
    #[error("the enrolment key ended with an earlier registration of {id}; attest with a new token (ca token create)")]
    KeyEnded {
        /// Whom it stood for.
        id: SpiffeId,
    },
    /// The operator evicted the key, for ever.
    #[error(
        "the enrolment key of {id} was evicted; only a new key (delete the agent's state) with a new token is taken"
    )]
    KeyEvicted {
        /// Whom it stood for.
        id: SpiffeId,
    },
    /// The kernel's word was asked for on a network connection.
    #[error("unix attestation works on the local socket only")]
    NotLocal,
    /// No registration is there for what the evidence shows.
    #[error("no registration matches {shown}")]
    NoRegistration {
        /// Whose registration was looked for, where that is known.
        id: Option<SpiffeId>,
        /// The identity or the process that none matches.
        shown: String,
    },
    /// The registration asks for other evidence.
    #[error("the registration of {id} asks for {asked}, not {shown}")]
    OtherEvidence {
        /// Whose registration.
        id: SpiffeId,
        /// What it asks for.
        asked: &'static str,
        /// What was shown.
        shown: &'static str,
    },
    /// Several registrations match, and nothing says which is meant.
    #[error("several registrations match {process}: {ids}; make their unix selectors distinct")]
    Ambiguous {
        /// Who asks.
        process: String,
        /// Which match.
        ids: String,
    },
    /// The certificate signing request is refused.
    #[error("{error}")]
    Csr {
        /// Who asks.
        id: SpiffeId,
        /// What is wrong with it.
        #[source]
        error: CsrError,
    },
    /// The caller asks too often.
    #[error("too many {0}; try again later")]
    TooOften(&'static str),
    /// The authority cannot sign.
    #[error(transparent)]
    Sign(#[from] SignError),
    /// The store does not take what must be written first.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Refusal {
    /// In one word, for audit and metric.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::NotBound => "not_bound",
            Self::NoEvidence => "no_evidence",
            Self::TokenUnknown => "token_unknown",
            Self::TokenExpired { .. } => "token_expired",
            Self::TokenRevoked { .. } => "token_revoked",
            Self::TokenReused { .. } => "token_reused_by_another_key",
            Self::KeyEnded { .. } => "key_ended",
            Self::KeyEvicted { .. } => "key_evicted",
            Self::NotLocal => "not_local",
            Self::NoRegistration { .. } => "no_registration",
            Self::OtherEvidence { .. } => "other_evidence",
            Self::Ambiguous { .. } => "ambiguous",
            Self::Csr { .. } => "csr",
            Self::TooOften(_) => "too_often",
            Self::Sign(SignError::Expired(_)) => "authority_expired",
            Self::Sign(_) => "signing",
            Self::Store(_) => "store",
        }
    }

    /// Whose identity was asked for, where that is known.
    pub(crate) fn spiffe_id(&self) -> Option<&SpiffeId> {
        match self {
            Self::NoRegistration { id, .. } => id.as_ref(),
            Self::TokenExpired { id, .. }
            | Self::TokenRevoked { id, .. }
            | Self::TokenReused { id, .. }
            | Self::KeyEnded { id }
            | Self::KeyEvicted { id }
            | Self::OtherEvidence { id, .. }
            | Self::Csr { id, .. } => Some(id),
            _ => None,
        }
    }

    /// The digest of the token whose misuse this tells of.
    pub(crate) fn token(&self) -> Option<[u8; 32]> {
        match self {
            Self::TokenExpired { digest, .. }
            | Self::TokenRevoked { digest, .. }
            | Self::TokenReused { digest, .. } => Some(*digest),
            _ => None,
        }
    }

    /// Whether it is the authority's own trouble, which passes, and not the caller's.
    pub(crate) fn is_ours(&self) -> bool {
        matches!(self, Self::Sign(_) | Self::Store(_))
    }

    /// What the caller is told.
    pub(crate) fn status(&self) -> Status {
        let (code, message) = match self {
            Self::TokenUnknown | Self::TokenExpired { .. } | Self::TokenRevoked { .. } | Self::TokenReused { .. } => {
                (Code::Unauthenticated, TOKEN_REFUSED.to_owned())
            }
            Self::NotBound | Self::NotLocal | Self::KeyEnded { .. } | Self::KeyEvicted { .. } => {
                (Code::Unauthenticated, self.to_string())
            }
            Self::NoRegistration { .. } | Self::OtherEvidence { .. } | Self::Ambiguous { .. } => {
                (Code::PermissionDenied, self.to_string())
            }
            Self::NoEvidence | Self::Csr { .. } => (Code::InvalidArgument, self.to_string()),
            Self::TooOften(_) => (Code::ResourceExhausted, self.to_string()),
            Self::Sign(SignError::Expired(_)) => (Code::Unavailable, self.to_string()),
            Self::Sign(_) => (Code::Internal, "the authority could not make a fit certificate; see its log".to_owned()),
            Self::Store(_) => {
                (Code::Unavailable, "the authority cannot write its store now; try again later".to_owned())
            }
        };
        Status::new(code, message)
    }
}

/// One answer for every token that is not good, so that a guess learns nothing.
const TOKEN_REFUSED: &str = "the join token is unknown, has expired, was revoked, or was used by another key; ask for a new one (ca token create)";
