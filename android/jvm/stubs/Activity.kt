// The few androidx.activity declarations that the sample uses, to check its types: that library is not on Maven
// Central. Nothing here runs.

@file:Suppress("unused", "UNUSED_PARAMETER")

package androidx.activity

import android.app.Activity
import androidx.lifecycle.ViewModel

open class ComponentActivity : Activity()

inline fun <reified VM : ViewModel> ComponentActivity.viewModels(): Lazy<VM> = error("a stub")
