internal import NiwakiNative

/// An endpoint that speaks OpenAI's chat completions.
///
/// ```swift
/// Endpoint("https://api.example.com", model: "large-model") { try await keys.current() }
/// ```
public struct Endpoint: Sendable {
    /// Its base URL, with or without `/v1` at its end.
    public var url: String

    /// The model to ask for, as the endpoint calls it.
    public var model: String

    /// The HTTP stack that carries the requests.
    public var transport: any Transport

    /// How long each wait may be.
    public var timeouts: EndpointTimeouts

    /// How often a request is sent again.
    public var retry: EndpointRetry

    /// Whether text and key may travel unencrypted to another machine than this one.
    public var allowPlaintext: Bool

    /// Gives out the key when a request is about to be sent, `nil` for none. The key is not kept; when it throws, nothing
    /// is sent.
    public var apiKey: @Sendable () async throws -> String?

    /// An endpoint; each part is explained where it is declared.
    public init(
        _ url: String,
        model: String,
        transport: any Transport = URLSessionTransport(),
        timeouts: EndpointTimeouts = EndpointTimeouts(),
        retry: EndpointRetry = EndpointRetry(),
        allowPlaintext: Bool = false,
        apiKey: @escaping @Sendable () async throws -> String? = { nil }
    ) {
        self.url = url
        self.model = model
        self.transport = transport
        self.timeouts = timeouts
        self.retry = retry
        self.allowPlaintext = allowPlaintext
        self.apiKey = apiKey
    }

    func toNative() throws -> NiwakiNative.Endpoint {
        NiwakiNative.Endpoint(
            url: url,
            model: model,
            timeouts: try timeouts.toNative(),
            retry: try retry.toNative(),
            allowPlaintext: allowPlaintext
        )
    }
}

/// How long each wait for an endpoint may be.
public struct EndpointTimeouts: Sendable, Hashable {
    /// For finding the host, connecting and the TLS handshake.
    public var connect: Duration

    /// From the connection to the head of the response.
    public var firstByte: Duration

    /// Between two lines of the stream.
    public var idle: Duration

    /// For the whole answer, retries and the waits between them included.
    public var total: Duration

    /// Timeouts; each is explained where it is declared.
    public init(
        connect: Duration = .seconds(10),
        firstByte: Duration = .seconds(60),
        idle: Duration = .seconds(30),
        total: Duration = .seconds(600)
    ) {
        self.connect = connect
        self.firstByte = firstByte
        self.idle = idle
        self.total = total
    }

    func toNative() throws -> NiwakiNative.EndpointTimeouts {
        NiwakiNative.EndpointTimeouts(
            connectMs: try connect.wholeMilliseconds("connect"),
            firstByteMs: try firstByte.wholeMilliseconds("firstByte"),
            idleMs: try idle.wholeMilliseconds("idle"),
            totalMs: try total.wholeMilliseconds("total")
        )
    }
}

/// How often, and how soon, a request is sent again before its first text came.
public struct EndpointRetry: Sendable, Hashable {
    /// Most times it is sent again.
    public var maxRetries: Int

    /// The longest wait before the first retry; it doubles with each.
    public var backoff: Duration

    /// The longest wait. An endpoint that asks for more is not waited for.
    public var maxWait: Duration

    /// Retries; each part is explained where it is declared.
    public init(maxRetries: Int = 2, backoff: Duration = .milliseconds(500), maxWait: Duration = .seconds(10)) {
        self.maxRetries = maxRetries
        self.backoff = backoff
        self.maxWait = maxWait
    }

    func toNative() throws -> NiwakiNative.EndpointRetry {
        NiwakiNative.EndpointRetry(
            maxRetries: try exact(maxRetries, "maxRetries"),
            backoffMs: try backoff.wholeMilliseconds("backoff"),
            maxWaitMs: try maxWait.wholeMilliseconds("maxWait")
        )
    }
}

/// What an endpoint's failure is about.
public struct EndpointError: Sendable, Hashable {
    /// What failed.
    public let failure: EndpointFailure

    /// The status of the response; `nil` where that was not the failure.
    public let status: Int?

    /// The endpoint's own code for the failure, such as `context_length_exceeded`.
    public let code: String?

    /// When to try again, if the endpoint said so.
    public let retryAfter: Duration?

    /// Whether a part of the answer was given out before.
    public let brokeOff: Bool

    /// What, where and why, for developers and logs.
    public let details: String
}

/// What failed at an endpoint, or on the way to it. More may come: a `switch` over it has a `default`.
public struct EndpointFailure: Sendable, Hashable, CustomStringConvertible {
    /// Its name.
    public let description: String

    /// The app's key source threw.
    public static let keyUnavailable = EndpointFailure(description: "keyUnavailable")

    /// The key holds characters that no header can.
    public static let invalidKey = EndpointFailure(description: "invalidKey")

    /// Nothing listens there.
    public static let refused = EndpointFailure(description: "refused")

    /// No network, or no route.
    public static let unreachable = EndpointFailure(description: "unreachable")

    /// The name has no address.
    public static let dns = EndpointFailure(description: "dns")

    /// Its identity is not proven.
    public static let tls = EndpointFailure(description: "tls")

    /// No connection in time.
    public static let connectTimeout = EndpointFailure(description: "connectTimeout")

    /// No response in time.
    public static let firstByteTimeout = EndpointFailure(description: "firstByteTimeout")

    /// Nothing more came.
    public static let idleTimeout = EndpointFailure(description: "idleTimeout")

    /// No complete answer in time.
    public static let totalTimeout = EndpointFailure(description: "totalTimeout")

    /// It does not accept the key.
    public static let unauthorized = EndpointFailure(description: "unauthorized")

    /// It accepts no more requests for now.
    public static let rateLimited = EndpointFailure(description: "rateLimited")

    /// It failed.
    public static let server = EndpointFailure(description: "server")

    /// It knows no such path or model.
    public static let notFound = EndpointFailure(description: "notFound")

    /// It does not accept the request.
    public static let badRequest = EndpointFailure(description: "badRequest")

    /// It redirects, which is not followed.
    public static let redirected = EndpointFailure(description: "redirected")

    /// What it sends is no stream of chat completions.
    public static let `protocol` = EndpointFailure(description: "protocol")

    /// It sends more than is accepted.
    public static let tooLarge = EndpointFailure(description: "tooLarge")

    /// It reported a failure within its stream.
    public static let reported = EndpointFailure(description: "reported")

    /// The connection ended before the answer did.
    public static let interrupted = EndpointFailure(description: "interrupted")

    /// The app's own transport failed.
    public static let transport = EndpointFailure(description: "transport")

    private init(description: String) {
        self.description = description
    }

    init(_ native: NiwakiNative.EndpointFailure) {
        switch native {
        case .keyUnavailable: self = .keyUnavailable
        case .invalidKey: self = .invalidKey
        case .refused: self = .refused
        case .unreachable: self = .unreachable
        case .dns: self = .dns
        case .tls: self = .tls
        case .connectTimeout: self = .connectTimeout
        case .firstByteTimeout: self = .firstByteTimeout
        case .idleTimeout: self = .idleTimeout
        case .totalTimeout: self = .totalTimeout
        case .unauthorized: self = .unauthorized
        case .rateLimited: self = .rateLimited
        case .server: self = .server
        case .notFound: self = .notFound
        case .badRequest: self = .badRequest
        case .redirected: self = .redirected
        case .protocol: self = .protocol
        case .tooLarge: self = .tooLarge
        case .reported: self = .reported
        case .interrupted: self = .interrupted
        case .transport: self = .transport
        }
    }

    /// What can be done about it.
    var suggestion: String {
        switch self {
        case .keyUnavailable, .invalidKey, .unauthorized: "Get another key."
        case .refused, .dns, .tls, .notFound, .redirected: "Correct the endpoint's address, or the model's name."
        case .unreachable: "Try again when there is a network, or ask on the device."
        case .badRequest: "Ask with less text, or correct the options."
        case .protocol, .tooLarge: "Ask an endpoint that speaks OpenAI's chat completions."
        case .transport: "Correct the app's transport."
        default: "Try again later, or ask on the device."
        }
    }
}

final class KeySource: NiwakiNative.ApiKeySource {
    private let key: @Sendable () async throws -> String?

    init(_ key: @escaping @Sendable () async throws -> String?) {
        self.key = key
    }

    func apiKey() throws -> String? {
        do {
            return try Waiting().wait(for: key)
        } catch {
            // What it says may hold the key.
            throw NiwakiNative.NiwakiError.Internal(details: "the key source threw")
        }
    }
}
