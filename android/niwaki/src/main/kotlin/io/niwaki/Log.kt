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
            setLogSink(sink?.let(::Forwarding), NativeLogLevel.entries[maxLevel.ordinal])
        }
    }

    private class Forwarding(private val sink: LogSink) : NativeLogSink {
        override fun log(level: NativeLogLevel, target: String, message: String) =
            sink.log(LogLevel.entries[level.ordinal], target, message)
    }
}
