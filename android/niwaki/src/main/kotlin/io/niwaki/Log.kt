package io.niwaki

import io.niwaki.ffi.setLogSink
import io.niwaki.ffi.LogLevel as NativeLogLevel
import io.niwaki.ffi.LogSink as NativeLogSink

/** How important a log line is. */
public enum class LogLevel {
    /** Something failed. */
    Error,

    /** Something is not as it should be. */
    Warn,

    /** What an app's developer may want to know. */
    Info,

    /** What a developer of this library may want to know. */
    Debug,

    /** Everything. */
    Trace,
    ;

    internal fun toNative(): NativeLogLevel = when (this) {
        Error -> NativeLogLevel.ERROR
        Warn -> NativeLogLevel.WARN
        Info -> NativeLogLevel.INFO
        Debug -> NativeLogLevel.DEBUG
        Trace -> NativeLogLevel.TRACE
    }
}

internal fun NativeLogLevel.toLogLevel(): LogLevel = when (this) {
    NativeLogLevel.ERROR -> LogLevel.Error
    NativeLogLevel.WARN -> LogLevel.Warn
    NativeLogLevel.INFO -> LogLevel.Info
    NativeLogLevel.DEBUG -> LogLevel.Debug
    NativeLogLevel.TRACE -> LogLevel.Trace
}

/** Takes the library's log lines, on whichever thread they come up. They never hold text of users. */
public fun interface LogSink {
    /** Takes one line. [target] is the native module it comes from. */
    public fun log(level: LogLevel, target: String, message: String)

    public companion object {
        /**
         * Gives lines of at most [maxLevel] to [sink] from now on; with null, to nobody, as before the first call.
         *
         * ```
         * LogSink.set(LogLevel.Info) { level, target, message -> Log.i(target, "$level $message") }
         * ```
         */
        public fun set(maxLevel: LogLevel, sink: LogSink?): Unit = native {
            setLogSink(sink?.let(::Forwarding), maxLevel.toNative())
        }
    }

    private class Forwarding(private val sink: LogSink) : NativeLogSink {
        override fun log(level: NativeLogLevel, target: String, message: String) =
            sink.log(level.toLogLevel(), target, message)
    }
}
