package io.niwaki

import kotlin.time.Duration

// What an app says, as the native side takes it. What makes no sense is a NiwakiException.InvalidArgument.

internal fun Int.count(name: String, from: Int = 0): UInt = toLong().count(name, from).toUInt()

internal fun Long.count(name: String, from: Int = 0): ULong {
    if (this < from) throw NiwakiException.InvalidArgument("$name $this is not from $from on", null)
    return toULong()
}

internal fun Duration.milliseconds(name: String): ULong {
    if (isNegative()) throw NiwakiException.InvalidArgument("$name $this is negative", null)
    return inWholeMilliseconds.toULong()
}

/** With U+FFFD for every half of a pair of surrogates that stands alone, such as one of an emoji that was cut in two. */
internal fun String.wellFormed(): String {
    if (indices.none(::isLoneSurrogate)) return this
    return String(CharArray(length) { if (isLoneSurrogate(it)) '\uFFFD' else this[it] })
}

private fun String.isLoneSurrogate(index: Int): Boolean = when {
    this[index].isHighSurrogate() -> getOrNull(index + 1)?.isLowSurrogate() != true
    this[index].isLowSurrogate() -> getOrNull(index - 1)?.isHighSurrogate() != true
    else -> false
}
