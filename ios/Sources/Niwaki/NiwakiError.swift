import Foundation
internal import NiwakiNative

/// What went wrong, by what an app can do about it.
///
/// `details` are for developers and logs: they say what, where and why, and never hold text of users. More cases may come: a
/// `switch` over them has a `default`.
public enum NiwakiError: Error, Sendable, Hashable {
    /// There is no such file: get it.
    case fileNotFound(details: String)

    /// The file cannot be read: no permission, a closed descriptor, a failing disk.
    case fileUnreadable(details: String)

    /// The file is damaged, truncated, or no bundle at all: get it again.
    case invalidBundle(details: String)

    /// The bundle is for another version of this library: update the app or get another bundle.
    case unsupportedBundle(details: String)

    /// The model does not fit into the allowed memory: use a shorter context or a smaller model.
    ///
    /// `neededBytes` and `limitBytes` are `nil` where an allocation failed.
    case notEnoughMemory(neededBytes: Int?, limitBytes: Int?, details: String)

    /// The context has too little room: start over, or with less text.
    ///
    /// `neededTokens` would have to be in the context, which has room for `contextTokens`.
    case contextFull(neededTokens: Int, contextTokens: Int, details: String)

    /// The model has no chat template that works: continue plain text with it.
    case noChat(details: String)

    /// The caller's arguments make no sense.
    case invalidArgument(details: String)

    /// Another stream of this session or chat goes on: read it to its end, cancel its task, or let go of it.
    case busy

    /// Nobody may or can answer the request, and nothing was sent: allow another ``RoutingMode``, or give the ``Router``
    /// what is missing.
    case notRouted(refusal: RoutingRefusal, details: String)

    /// The endpoint gave no answer, or not all of it: what can be done depends on its ``EndpointError/failure``.
    case endpoint(EndpointError)

    /// The engine, session, chat or router was closed.
    case closed(details: String)

    /// Anything else: a bug worth reporting.
    case `internal`(details: String)

    init(_ native: NiwakiNative.NiwakiError) {
        switch native {
        case .FileNotFound(let details): self = .fileNotFound(details: details)
        case .FileUnreadable(let details): self = .fileUnreadable(details: details)
        case .InvalidBundle(let details): self = .invalidBundle(details: details)
        case .UnsupportedBundle(let details): self = .unsupportedBundle(details: details)
        case .NotEnoughMemory(let neededBytes, let limitBytes, let details):
            self = .notEnoughMemory(
                neededBytes: neededBytes.map(Int.init(clamping:)),
                limitBytes: limitBytes.map(Int.init(clamping:)),
                details: details
            )
        case .ContextFull(let neededTokens, let contextTokens, let details):
            self = .contextFull(
                neededTokens: Int(clamping: neededTokens),
                contextTokens: Int(clamping: contextTokens),
                details: details
            )
        case .NoChat(let details): self = .noChat(details: details)
        case .InvalidArgument(let details): self = .invalidArgument(details: details)
        case .NotRouted(let refusal, let details):
            self = .notRouted(refusal: RoutingRefusal(refusal), details: details)
        case .Endpoint(let failure, let status, let code, let retryAfterMs, let brokeOff, let details):
            self = .endpoint(
                EndpointError(
                    failure: EndpointFailure(failure),
                    status: status.map(Int.init),
                    code: code,
                    retryAfter: retryAfterMs.map(Duration.init(milliseconds:)),
                    brokeOff: brokeOff,
                    details: details
                )
            )
        case .Busy: self = .busy
        case .Internal(let details): self = .internal(details: details)
        }
    }
}

extension NiwakiError: LocalizedError, CustomStringConvertible {
    /// What, where and why.
    public var details: String {
        switch self {
        case .fileNotFound(let details), .fileUnreadable(let details), .invalidBundle(let details),
            .unsupportedBundle(let details), .notEnoughMemory(_, _, let details), .contextFull(_, _, let details),
            .noChat(let details), .invalidArgument(let details), .notRouted(_, let details), .closed(let details),
            .internal(let details):
            details
        case .endpoint(let error):
            error.details
        case .busy:
            "another stream of this session or chat goes on"
        }
    }

    /// What `localizedDescription` says: the details, in English.
    public var errorDescription: String? { details }

    /// What can be done about it, in English.
    public var recoverySuggestion: String? {
        switch self {
        case .fileNotFound: "Get the model."
        case .fileUnreadable: "See to it that the app may read the file."
        case .invalidBundle: "Get the model again."
        case .unsupportedBundle: "Update the app, or get a model that is made for it."
        case .notEnoughMemory: "Use a shorter context or a smaller model."
        case .contextFull: "Start over, or with less text."
        case .noChat: "Continue plain text with this model."
        case .invalidArgument: "Correct the arguments."
        case .busy: "Read the other stream to its end, cancel its task, or let go of it."
        case .notRouted: "Allow another routing mode, or give the router what is missing."
        case .endpoint(let error): error.failure.suggestion
        case .closed: "Open it again."
        case .internal: "Please report it."
        }
    }

    /// The details and what can be done.
    public var description: String {
        [details, recoverySuggestion].compactMap { $0 }.joined(separator: ". ")
    }
}
