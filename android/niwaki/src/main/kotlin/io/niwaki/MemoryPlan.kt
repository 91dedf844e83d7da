package io.niwaki

import io.niwaki.ffi.MemoryPlan as NativeMemoryPlan

/**
 * What a model takes at its peak.
 *
 * @property parts what it is made of.
 * @property fileBytes pages of the file, which the system may take back.
 * @property anonymousBytes what counts against the app.
 * @property contextTokens tokens of context that the plan is for.
 */
@ConsistentCopyVisibility
public data class MemoryPlan internal constructor(
    val parts: List<MemoryPart>,
    val fileBytes: Long,
    val anonymousBytes: Long,
    val contextTokens: Int,
) {
    internal constructor(native: NativeMemoryPlan) : this(
        parts = native.parts.map { MemoryPart(it.name, it.fileBacked, it.sizeBytes.toLong()) },
        fileBytes = native.fileBytes.toLong(),
        anonymousBytes = native.anonymousBytes.toLong(),
        contextTokens = native.contextTokens.toInt(),
    )
}

/**
 * One line of a [MemoryPlan].
 *
 * @property name what it is for.
 * @property fileBacked the system may take it back: pages of the file. Otherwise it counts against the app.
 * @property sizeBytes bytes at the peak.
 */
@ConsistentCopyVisibility
public data class MemoryPart internal constructor(
    val name: String,
    val fileBacked: Boolean,
    val sizeBytes: Long,
)
