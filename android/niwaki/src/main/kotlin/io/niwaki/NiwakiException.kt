package io.niwaki

import kotlin.time.Duration
import kotlin.time.Duration.Companion.milliseconds
import io.niwaki.ffi.NiwakiException as NativeException

/**
 * What went wrong, by what an app can do about it. Messages are for developers and never hold text of users. More kinds may
 * come: a `when` over them has an `else`.
 */
public abstract class NiwakiException internal constructor(message: String, cause: Throwable?) : Exception(message, cause) {
    /** How the request was routed that failed so; null where no [Router] was asked. */
    public var decision: Decision? = null
        internal set

    /** There is no such file: get it. */
    public class FileNotFound internal constructor(message: String, cause: Throwable?) :
        NiwakiException(message, cause)

    /** The file cannot be read: no permission, a closed descriptor, a failing disk. */
    public class FileUnreadable internal constructor(message: String, cause: Throwable?) :
        NiwakiException(message, cause)

    /** The file is damaged, truncated, or no bundle at all: get it again. */
    public class InvalidBundle internal constructor(message: String, cause: Throwable?) :
        NiwakiException(message, cause)

    /** The bundle is for another version of this library: update the app or get another bundle. */
    public class UnsupportedBundle internal constructor(message: String, cause: Throwable?) :
        NiwakiException(message, cause)

    /**
     * The model does not fit into the allowed memory: use a shorter context or a smaller model.
     *
     * @property neededBytes what it needs; null where an allocation failed.
     * @property limitBytes what it may take; null where an allocation failed.
     */
    public class NotEnoughMemory internal constructor(
        message: String,
        public val neededBytes: Long?,
        public val limitBytes: Long?,
        cause: Throwable?,
    ) : NiwakiException(message, cause)

    /**
     * The context has too little room: start over, or with less text.
     *
     * @property neededTokens tokens that would have to be in the context.
     * @property contextTokens tokens it has room for.
     */
    public class ContextFull internal constructor(
        message: String,
        public val neededTokens: Int,
        public val contextTokens: Int,
        cause: Throwable?,
    ) : NiwakiException(message, cause)

    /** The model has no chat template that works: continue plain text with it. */
    public class NoChat internal constructor(message: String, cause: Throwable?) : NiwakiException(message, cause)

    /** The caller's arguments make no sense. */
    public class InvalidArgument internal constructor(message: String, cause: Throwable?) :
        NiwakiException(message, cause)

    /** Another flow of this session or chat is being collected: collect one at a time. */
    public class Busy internal constructor(message: String, cause: Throwable?) : NiwakiException(message, cause)

    /**
     * Nobody may or can answer the request, and nothing was sent: allow another [RoutingMode], or give the [Router]
     * what is missing.
     *
     * @property refusal what is in the way.
     */
    public class NotRouted internal constructor(
        message: String,
        public val refusal: RoutingRefusal,
        cause: Throwable?,
    ) : NiwakiException(message, cause)

    /**
     * The endpoint gave no answer, or not all of it.
     *
     * @property failure what failed.
     * @property status the status of its response; null where that was not the failure.
     * @property code the endpoint's own code for the failure, such as `context_length_exceeded`.
     * @property retryAfter when to try again, if the endpoint said so.
     * @property brokeOff whether a part of the answer was given out before.
     */
    public class EndpointFailed internal constructor(
        message: String,
        public val failure: EndpointFailure,
        public val status: Int?,
        public val code: String?,
        public val retryAfter: Duration?,
        public val brokeOff: Boolean,
        cause: Throwable?,
    ) : NiwakiException(message, cause)

    /**
     * The native library is not in the app, or not for this device: install where there is one (`abiFilters` of the app's
     * build), and offer no model elsewhere.
     */
    public class LibraryNotLoaded internal constructor(message: String, cause: Throwable?) :
        NiwakiException(message, cause)

    /** The engine, session, chat or router was closed. */
    public class Closed internal constructor(message: String, cause: Throwable? = null) :
        NiwakiException(message, cause)

    /** Anything else: a bug worth reporting. */
    public class Internal internal constructor(message: String, cause: Throwable?) : NiwakiException(message, cause)
}

internal fun NativeException.toNiwakiException(): NiwakiException = when (this) {
    is NativeException.FileNotFound -> NiwakiException.FileNotFound(details, this)
    is NativeException.FileUnreadable -> NiwakiException.FileUnreadable(details, this)
    is NativeException.InvalidBundle -> NiwakiException.InvalidBundle(details, this)
    is NativeException.UnsupportedBundle -> NiwakiException.UnsupportedBundle(details, this)
    is NativeException.NotEnoughMemory ->
        NiwakiException.NotEnoughMemory(details, neededBytes?.toLong(), limitBytes?.toLong(), this)
    is NativeException.ContextFull ->
        NiwakiException.ContextFull(details, neededTokens.toInt(), contextTokens.toInt(), this)
    is NativeException.NoChat -> NiwakiException.NoChat(details, this)
    is NativeException.InvalidArgument -> NiwakiException.InvalidArgument(details, this)
    is NativeException.NotRouted -> NiwakiException.NotRouted(details, refusal.toRefusal(), this)
    is NativeException.Endpoint -> NiwakiException.EndpointFailed(
        message = details,
        failure = failure.toFailure(),
        status = status?.toInt(),
        code = code,
        retryAfter = retryAfterMs?.toLong()?.milliseconds,
        brokeOff = brokeOff,
        cause = this,
    )
    is NativeException.Busy -> NiwakiException.Busy("another flow of this session is being collected", this)
    is NativeException.Internal -> NiwakiException.Internal(details, this)
}
