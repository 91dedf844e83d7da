internal import NiwakiNative

/// How important a log line is.
public enum LogLevel: Sendable, Hashable {
    /// Something failed.
    case error

    /// Something is not as it should be.
    case warn

    /// What an app's developer may want to know.
    case info

    /// What a developer of this library may want to know.
    case debug

    /// Everything.
    case trace

    init(_ native: NiwakiNative.LogLevel) {
        switch native {
        case .error: self = .error
        case .warn: self = .warn
        case .info: self = .info
        case .debug: self = .debug
        case .trace: self = .trace
        }
    }

    func toNative() -> NiwakiNative.LogLevel {
        switch self {
        case .error: .error
        case .warn: .warn
        case .info: .info
        case .debug: .debug
        case .trace: .trace
        }
    }
}

/// Where the library's log lines go.
public enum LogSink {
    /// Gives lines of at most `maxLevel` to `sink` from now on; with `nil`, to nobody, as before the first call.
    ///
    /// ```swift
    /// let logger = Logger(subsystem: "com.example.app", category: "niwaki")
    /// try LogSink.set(.info) { level, target, message in
    ///     logger.info("\(target, privacy: .public) \(message, privacy: .public)")
    /// }
    /// ```
    ///
    /// The sink is called on whichever thread a line comes up, with the native module it comes from. Lines never hold
    /// text of users.
    ///
    /// - Throws: ``NiwakiError/invalidArgument(details:)`` when another library of the app has taken the log of the
    ///   native code.
    public static func set(
        _ maxLevel: LogLevel,
        _ sink: (@Sendable (_ level: LogLevel, _ target: String, _ message: String) -> Void)?
    ) throws {
        try native {
            try setLogSink(sink: sink.map(Forwarding.init), maxLevel: maxLevel.toNative())
        }
    }

    private final class Forwarding: NiwakiNative.LogSink {
        private let sink: @Sendable (LogLevel, String, String) -> Void

        init(_ sink: @escaping @Sendable (LogLevel, String, String) -> Void) {
            self.sink = sink
        }

        func log(level: NiwakiNative.LogLevel, target: String, message: String) {
            sink(LogLevel(level), target, message)
        }
    }
}
