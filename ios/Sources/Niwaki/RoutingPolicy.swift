internal import NiwakiNative

/// What a ``Router`` goes by.
///
/// The context of the model is a limit of its own: longer prompts go to the endpoint.
public struct RoutingPolicy: Sendable, Hashable {
    /// Which backend is wanted.
    public var mode: RoutingMode

    /// Longer prompts go to the endpoint, and to it alone.
    public var maxLocalPromptTokens: Int?

    /// Where the device would take longer to its first token, by the speed it was seen to have, the endpoint is asked
    /// first; the device takes over when it fails.
    public var maxFirstToken: Duration?

    /// Says how to route; each part is explained where it is declared.
    public init(mode: RoutingMode = .preferLocal, maxLocalPromptTokens: Int? = nil, maxFirstToken: Duration? = nil) {
        self.mode = mode
        self.maxLocalPromptTokens = maxLocalPromptTokens
        self.maxFirstToken = maxFirstToken
    }

    func toNative() throws -> NiwakiNative.RoutingPolicy {
        NiwakiNative.RoutingPolicy(
            mode: mode.toNative(),
            maxLocalPromptTokens: try maxLocalPromptTokens.map { try exact($0, "maxLocalPromptTokens") },
            maxFirstTokenMs: try maxFirstToken.map { try $0.wholeMilliseconds("maxFirstToken") }
        )
    }
}

/// Which backend is wanted.
public enum RoutingMode: Sendable, Hashable, CaseIterable {
    /// Never leave the device.
    case localOnly

    /// The device as long as the limits allow it, else the endpoint.
    case preferLocal

    /// The endpoint, and the device when the endpoint fails.
    case preferCloud

    /// Never compute on the device.
    case cloudOnly

    init(_ native: NiwakiNative.RoutingMode) {
        switch native {
        case .localOnly: self = .localOnly
        case .preferLocal: self = .preferLocal
        case .preferCloud: self = .preferCloud
        case .cloudOnly: self = .cloudOnly
        }
    }

    func toNative() -> NiwakiNative.RoutingMode {
        switch self {
        case .localOnly: .localOnly
        case .preferLocal: .preferLocal
        case .preferCloud: .preferCloud
        case .cloudOnly: .cloudOnly
        }
    }
}

/// Why nobody is asked. More may come: a `switch` over it has a `default`.
public struct RoutingRefusal: Sendable, Hashable, CustomStringConvertible {
    /// Its name.
    public let description: String

    /// The request may not leave the device, and the policy computes nothing there.
    public static let onDeviceOnly = RoutingRefusal(description: "onDeviceOnly")

    /// There is no model on the device, and nobody else may answer.
    public static let noLocalModel = RoutingRefusal(description: "noLocalModel")

    /// There is no endpoint, and nobody else may answer.
    public static let noEndpoint = RoutingRefusal(description: "noEndpoint")

    private init(description: String) {
        self.description = description
    }

    init(_ native: NiwakiNative.RoutingRefusal) {
        switch native {
        case .onDeviceOnly: self = .onDeviceOnly
        case .noLocalModel: self = .noLocalModel
        case .noEndpoint: self = .noEndpoint
        }
    }
}

extension Duration {
    init(milliseconds: UInt64) {
        self = .milliseconds(Int64(clamping: milliseconds))
    }

    /// As the native side has it.
    func wholeMilliseconds(_ name: String) throws -> UInt64 {
        guard self >= .zero else {
            throw NiwakiError.invalidArgument(details: "\(name) \(self) is negative")
        }
        let (seconds, attoseconds) = components
        let (milliseconds, overflow) = UInt64(seconds).multipliedReportingOverflow(by: 1000)
        return overflow ? .max : milliseconds + UInt64(attoseconds / 1_000_000_000_000_000)
    }
}
