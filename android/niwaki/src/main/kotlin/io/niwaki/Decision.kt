package io.niwaki

import kotlin.time.Duration
import kotlin.time.Duration.Companion.milliseconds
import io.niwaki.ffi.Backend as NativeBackend
import io.niwaki.ffi.Decision as NativeDecision
import io.niwaki.ffi.RoutingReason as NativeReason
import io.niwaki.ffi.RoutingRefusal as NativeRefusal
import io.niwaki.ffi.TriedBackend as NativeTried

/**
 * How a request was routed. It holds numbers and names, never text of users.
 *
 * @property answeredBy who answered, or began to; null when nobody did.
 * @property reason why the backend that was asked first was; null when none was asked.
 * @property tried what was asked before, and why it did not answer.
 * @property mode the policy's mode.
 * @property onDeviceOnly whether the request had to stay on the device.
 * @property promptTokens tokens of the prompt, by the device's model.
 * @property contextTokens tokens that the device's context holds.
 * @property maxLocalPromptTokens the policy's limit.
 * @property predictedFirstToken how long the device was expected to take to its first token.
 * @property firstText how long the answer took to its first text, everything tried before included.
 */
@ConsistentCopyVisibility
public data class Decision internal constructor(
    val answeredBy: Backend?,
    val reason: RoutingReason?,
    val tried: List<TriedBackend>,
    val mode: RoutingMode,
    val onDeviceOnly: Boolean,
    val promptTokens: Int?,
    val contextTokens: Int?,
    val maxLocalPromptTokens: Int?,
    val predictedFirstToken: Duration?,
    val firstText: Duration?,
) {
    internal constructor(native: NativeDecision) : this(
        answeredBy = native.answeredBy?.toBackend(),
        reason = native.reason?.toReason(),
        tried = native.tried.map(::TriedBackend),
        mode = native.mode.toRoutingMode(),
        onDeviceOnly = native.onDeviceOnly,
        promptTokens = native.promptTokens?.toInt(),
        contextTokens = native.contextTokens?.toInt(),
        maxLocalPromptTokens = native.maxLocalPromptTokens?.toInt(),
        predictedFirstToken = native.predictedFirstTokenMs?.toLong()?.milliseconds,
        firstText = native.firstTextMs?.toLong()?.milliseconds,
    )
}

/** Who can answer. More may come: a `when` over it has an `else`. */
public class Backend private constructor(private val name: String) {
    override fun toString(): String = name

    public companion object {
        /** The model on the device. */
        public val Local: Backend = Backend("Local")

        /** The endpoint. */
        public val Cloud: Backend = Backend("Cloud")
    }
}

/** Why a backend is asked first. More may come: a `when` over it has an `else`. */
public abstract class RoutingReason internal constructor() {
    /** The policy's mode wants it. */
    public data object Mode : RoutingReason()

    /** The request may not leave the device. */
    public data object OnDeviceOnly : RoutingReason()

    /** There is no endpoint. */
    public data object NoEndpoint : RoutingReason()

    /** There is no model on the device. */
    public data object NoLocalModel : RoutingReason()

    /** The prompt is longer than the device should take. */
    @ConsistentCopyVisibility
    public data class PromptOverLimit internal constructor(val promptTokens: Int, val maxLocalPromptTokens: Int) :
        RoutingReason()

    /** The prompt leaves no room for an answer in the device's context. */
    @ConsistentCopyVisibility
    public data class PromptOverContext internal constructor(val promptTokens: Int, val contextTokens: Int) :
        RoutingReason()

    /** The device would take too long to its first token. */
    @ConsistentCopyVisibility
    public data class TooSlow internal constructor(val predicted: Duration, val maxFirstToken: Duration) : RoutingReason()
}

/** Why nobody is asked. More may come: a `when` over it has an `else`. */
public class RoutingRefusal private constructor(private val name: String) {
    override fun toString(): String = name

    public companion object {
        /** The request may not leave the device, and the policy computes nothing there. */
        public val OnDeviceOnly: RoutingRefusal = RoutingRefusal("OnDeviceOnly")

        /** There is no model on the device, and nobody else may answer. */
        public val NoLocalModel: RoutingRefusal = RoutingRefusal("NoLocalModel")

        /** There is no endpoint, and nobody else may answer. */
        public val NoEndpoint: RoutingRefusal = RoutingRefusal("NoEndpoint")
    }
}

/**
 * A backend that was asked and did not answer.
 *
 * @property backend which.
 * @property code a name for why that stays the same over versions.
 * @property message why, in words for developers.
 * @property sent how often the request was sent.
 * @property took how long it took to fail.
 */
@ConsistentCopyVisibility
public data class TriedBackend internal constructor(
    val backend: Backend,
    val code: String,
    val message: String,
    val sent: Int,
    val took: Duration,
) {
    internal constructor(native: NativeTried) : this(
        backend = native.backend.toBackend(),
        code = native.code,
        message = native.details,
        sent = native.sent.toInt(),
        took = native.tookMs.toLong().milliseconds,
    )
}

internal fun NativeBackend.toBackend(): Backend = when (this) {
    NativeBackend.LOCAL -> Backend.Local
    NativeBackend.CLOUD -> Backend.Cloud
}

internal fun NativeRefusal.toRefusal(): RoutingRefusal = when (this) {
    NativeRefusal.ON_DEVICE_ONLY -> RoutingRefusal.OnDeviceOnly
    NativeRefusal.NO_LOCAL_MODEL -> RoutingRefusal.NoLocalModel
    NativeRefusal.NO_ENDPOINT -> RoutingRefusal.NoEndpoint
}

private fun NativeReason.toReason(): RoutingReason = when (this) {
    is NativeReason.Mode -> RoutingReason.Mode
    is NativeReason.OnDeviceOnly -> RoutingReason.OnDeviceOnly
    is NativeReason.NoEndpoint -> RoutingReason.NoEndpoint
    is NativeReason.NoLocalModel -> RoutingReason.NoLocalModel
    is NativeReason.PromptOverLimit ->
        RoutingReason.PromptOverLimit(promptTokens.toInt(), maxLocalPromptTokens.toInt())
    is NativeReason.PromptOverContext -> RoutingReason.PromptOverContext(promptTokens.toInt(), contextTokens.toInt())
    is NativeReason.TooSlow ->
        RoutingReason.TooSlow(predictedMs.toLong().milliseconds, maxFirstTokenMs.toLong().milliseconds)
}
